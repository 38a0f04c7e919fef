"""The trainer's last words: why it ended, as an exit code and as the pod's termination message.

The first rank to report is closest to the cause: when one rank fails, the others fail soon after because it is gone. So later
words do not replace earlier ones, unless they are the same and add to them: all ranks report why all of them stop, but only
rank 0 knows the accuracy.
"""

import fcntl
import logging
import os
import sys
import traceback
from pathlib import Path

from spinrun_api.documents import InvalidDocumentError
from spinrun_protocol.environment import TERMINATION_LOG
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.termination import MAX_BYTES, TerminationMessage, encode
from spinrun_worker.errors import ConfigurationError, NoPairsError, NoPromptsError, Preempted

logger = logging.getLogger(__name__)


def outcome(error: BaseException) -> tuple[ExitCode, str] | None:
    """The exit code and the one-word reason of an expected exception; None for any other."""
    # Here, because the launcher needs this module but not the ledger and what that imports.
    from spinrun_worker.ledger.errors import LedgerUnavailableError, SupersededError

    match error:
        case Preempted():
            return ExitCode.PREEMPTED, "Preempted"
        case NoPairsError():
            return ExitCode.INVALID_CONFIGURATION, "NoPairs"
        case NoPromptsError():
            return ExitCode.INVALID_CONFIGURATION, "NoPrompts"
        case ConfigurationError() | InvalidDocumentError():
            return ExitCode.INVALID_CONFIGURATION, "InvalidConfiguration"
        case LedgerUnavailableError():
            return ExitCode.LEDGER_UNAVAILABLE, "LedgerUnavailable"
        case SupersededError():
            return ExitCode.FAILED, "Superseded"
        case _:
            return None


def describe_failure(
    error: BaseException,
    *,
    window: int | None = None,
    step: int | None = None,
    version: int | None = None,
    accuracy: float | None = None,
    initial_accuracy: float | None = None,
) -> TerminationMessage:
    """The last words of a process that ends with an exception. An unexpected one is described by its class and origin.

    Args:
        error: The exception.
        window: The run's window, where it is known; likewise the others.
        step: Optimizer steps done.
        version: The newest version.
        accuracy: The newest accuracy.
        initial_accuracy: The accuracy of version 0.
    """
    code, reason = outcome(error) or (ExitCode.FAILED, type(error).__name__)
    return TerminationMessage(
        result="Preempted" if code is ExitCode.PREEMPTED else "Failed",
        reason=reason,
        message=str(error) if outcome(error) else _last_line(error),
        exit_code=code,
        window=window,
        step=step,
        version=version,
        accuracy=accuracy,
        initial_accuracy=initial_accuracy,
    )


def _last_line(error: BaseException) -> str:
    """The exception as the last line of its traceback shows it, and where it was raised."""
    line = traceback.format_exception_only(error)[0].strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{line} ({Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].name})" if frames else line


def say(words: TerminationMessage, *, replace: bool = False) -> None:
    """Write last words to the termination log, if there is one, and to stderr as one line.

    Never raises: the exit code must still get out.

    Args:
        words: The last words.
        replace: Whether anything reported before was a consequence of this.
    """
    document = encode(words)
    print(document.decode(), file=sys.stderr, flush=True)
    path = os.environ.get(TERMINATION_LOG)
    if path:
        try:
            _write(Path(path), document, replace=replace)
        except OSError as error:
            logger.warning("cannot write the termination log %s: %s", path, error)


def _write(path: Path, document: bytes, *, replace: bool) -> None:
    # In place: Kubernetes mounts this very file into the container, so nothing can be renamed over it. The lock keeps the ranks
    # of one machine apart; the file is never on the shared volume.
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if replace or _is_news(document, file.read(MAX_BYTES)):
            file.truncate(0)
            file.write(document)


def _is_news(document: bytes, earlier: bytes) -> bool:
    """Whether there are no earlier words, or the same ones without something that these add."""
    try:
        before = TerminationMessage.model_validate_json(earlier).to_document()
    except ValueError:
        return True
    now = TerminationMessage.model_validate_json(document).to_document()
    return now.keys() > before.keys() and now | before == now


def clear() -> None:
    """Empty the termination log before any rank writes: on a plain machine it may hold an earlier attempt's words."""
    path = os.environ.get(TERMINATION_LOG)
    if path and Path(path).exists():
        os.truncate(path, 0)
