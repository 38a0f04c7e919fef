"""Where the files of a model or of the data are read: whatever a library raises over them is said by who must act.

Libraries raise anything over a file that they did not expect: `tokenizers` a bare Exception, or a panic of Rust; a chat template
whatever its Jinja comes to. Neither is retried, because the file will be the same in the next attempt. A network or a disk that
fails may work again.
"""

import errno
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx  # httpx or httpx2, whichever this version of it uses

from spinrun_worker.errors import ConfigurationError, Preempted, RunError

MAX_CHARACTERS = 600
"""Longest part of a library's message that is repeated."""

_OF_THE_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)
"""Errors of the system that are due to what a path leads to. Others, such as EIO or ESTALE, are due to the disk or the volume."""


@contextmanager
def reading(what: str, *, remedy: str, error_class: type[ConfigurationError] = ConfigurationError) -> Generator[None]:
    """Read files of the user's in this block.

    Args:
        what: The field of the spec and what is read, at the start of a sentence.
        remedy: What to do, at its end.
        error_class: What is raised where the files are at fault.

    Raises:
        ConfigurationError: The files are at fault, whatever a library raised over them.
        RunError: They cannot be reached now.
    """
    try:
        yield
    except (ConfigurationError, RunError, Preempted, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if is_transient(error):
            raise RunError(f"{what} cannot be read now: {describe(error)}") from error
        raise error_class(f"{what}: {describe(error)}. {remedy[0].upper()}{remedy[1:]}") from error


def describe(error: BaseException) -> str:
    """An exception in a line, for people: its class only where the message alone would say too little."""
    message = " ".join(str(error).split()).rstrip(".")
    if len(message) > MAX_CHARACTERS:
        message = message[:MAX_CHARACTERS] + "…"
    if not message:
        return type(error).__name__
    # These are raised with whole sentences, if not by Python itself; a KeyError's message is the key.
    return message if type(error) in (Exception, OSError, ValueError, RuntimeError) else f"{type(error).__name__}: {message}"


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust met what it thought impossible. Such an exception is not an Exception."""
    return type(error).__name__ == "PanicException"


def is_transient(error: BaseException) -> bool:
    """Whether a failure is due to the network, the Hub, the disk or the memory, not to what was to be read."""
    return any(_is_transient(each) for each in _causes(error))


def _is_transient(error: BaseException) -> bool:
    match error:
        case LocalEntryNotFoundError():  # how the Hub's library reports that a download failed
            return not constants.HF_HUB_OFFLINE
        case HfHubHTTPError():
            return error.response.status_code >= 500 or error.response.status_code == 429
        case httpx.HTTPError() | TimeoutError():
            return True
        case ConnectionError():  # one of its kind says that the Hub must not be asked
            return not constants.HF_HUB_OFFLINE
        case OSError():
            return error.errno is not None and error.errno not in _OF_THE_FILE
        case RuntimeError():  # torch's own MemoryError
            return "DefaultCPUAllocator" in str(error)
        case _:
            return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that led to it."""
    seen: set[int] = set()
    next_one: BaseException | None = error
    while next_one is not None and id(next_one) not in seen:
        seen.add(id(next_one))
        yield next_one
        next_one = next_one.__cause__ or (None if next_one.__suppress_context__ else next_one.__context__)
