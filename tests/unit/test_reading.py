"""Who must act when a file cannot be read: the user, or nobody yet."""

import errno
import os

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from spinrun_worker.errors import ConfigurationError, Preempted, RunError
from spinrun_worker.reading import MAX_CHARACTERS, describe, reading


class PanicException(BaseException):
    """As PyO3 raises it: not an Exception."""


def raised_for(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught, reading("model.source 'm'", remedy="name another"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (Exception("expected value at line 1"), "model.source 'm': expected value at line 1. Name another"),
        (KeyError("model_type"), "model.source 'm': KeyError: 'model_type'. Name another"),
        (ZeroDivisionError("division by zero"), "model.source 'm': ZeroDivisionError: division by zero. Name another"),
        (RecursionError("too deep"), "model.source 'm': RecursionError: too deep. Name another"),
        (AttributeError(), "model.source 'm': AttributeError. Name another"),
        (PanicException("index out of bounds"), "model.source 'm': PanicException: index out of bounds. Name another"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "model.source 'm': FileNotFoundError: [Errno 2] No such file. Name"),
        (PermissionError(errno.EACCES, "Permission denied", "/m/x"), "Permission denied: '/m/x'. Name another"),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), "Is a directory. Name another"),
        (OSError("does not appear to have a file\nnamed config.json."), "to have a file named config.json. Name another"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UnicodeDecodeError: 'utf-8' codec can't decode"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_is_wrong_with_a_file_is_for_the_user_to_mend(error: BaseException, want: str) -> None:
    result = raised_for(error)
    assert type(result) is ConfigurationError
    assert want in str(result)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        httpx.ConnectError("no route"),
        LocalEntryNotFoundError("neither in the cache nor to be downloaded"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_network_or_a_disk_that_fails_may_work_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert type(raised_for(error)) is RunError
    wrapped = OSError("We couldn't connect to the Hub")
    wrapped.__cause__ = error
    assert type(raised_for(wrapped)) is RunError, "libraries say it in their own words"


def test_what_the_hub_does_not_have_and_what_it_must_not_be_asked_for_is_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub/m"))
    assert type(raised_for(RepositoryNotFoundError("404", response=response))) is ConfigurationError
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for error in (LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline")):
        assert type(raised_for(error)) is ConfigurationError


@pytest.mark.parametrize("error", [RunError("later"), Preempted("stop"), MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_not_about_files_passes(error: BaseException) -> None:
    assert raised_for(error) is error


def test_an_error_of_our_own_passes_with_its_message() -> None:
    error = ConfigurationError("data.prompts: no")
    assert raised_for(error) is error


def test_a_page_of_a_message_is_cut() -> None:
    assert len(describe(ValueError("x" * 10_000))) == MAX_CHARACTERS + 1
