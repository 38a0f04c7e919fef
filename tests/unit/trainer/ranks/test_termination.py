import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_api.documents import InvalidDocumentError, Problem
from spinrun_protocol.environment import TERMINATION_LOG
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.termination import MAX_BYTES, TerminationMessage, encode
from spinrun_worker.errors import ConfigurationError, NoPairsError, NoPromptsError, Preempted, RunError
from spinrun_worker.ledger import LedgerUnavailableError, SupersededError, TornError
from spinrun_worker.trainer.ranks.termination import clear, describe_failure, say


class ModelError(ConfigurationError):
    """Stands for the errors that other parts derive."""


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ConfigurationError("x"), ExitCode.INVALID_CONFIGURATION, "InvalidConfiguration"),
        (ModelError("x"), ExitCode.INVALID_CONFIGURATION, "InvalidConfiguration"),
        (InvalidDocumentError("run.yaml", [Problem("spec", "x")]), ExitCode.INVALID_CONFIGURATION, "InvalidConfiguration"),
        (NoPairsError("x"), ExitCode.INVALID_CONFIGURATION, "NoPairs"),
        (NoPromptsError("x"), ExitCode.INVALID_CONFIGURATION, "NoPrompts"),
        (LedgerUnavailableError("x"), ExitCode.LEDGER_UNAVAILABLE, "LedgerUnavailable"),
        (SupersededError("x"), ExitCode.FAILED, "Superseded"),
        (Preempted("x"), ExitCode.PREEMPTED, "Preempted"),
        (TornError("x"), ExitCode.FAILED, "TornError"),
        (RunError("x"), ExitCode.FAILED, "RunError"),
        (ZeroDivisionError("x"), ExitCode.FAILED, "ZeroDivisionError"),
        (KeyboardInterrupt(), ExitCode.FAILED, "KeyboardInterrupt"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exception_has_an_exit_code_and_a_reason(error: BaseException, code: ExitCode, reason: str) -> None:
    words = describe_failure(error, window=3, step=48, version=3, accuracy=0.75)
    assert (words.exit_code, words.reason) == (code, reason)
    assert words.result == ("Preempted" if code == ExitCode.PREEMPTED else "Failed")
    assert (words.window, words.step, words.version, words.accuracy, words.initial_accuracy) == (3, 48, 3, 0.75, None)


def test_foreseen_error_speaks_for_itself() -> None:
    message = "Cannot write /ledger/weights: No space left on device. Free space"
    assert describe_failure(LedgerUnavailableError(message)).message == message


def test_unforeseen_error_tells_its_class_and_place() -> None:
    with pytest.raises(ValueError) as caught:
        json.loads("nonsense")
    message = describe_failure(caught.value).message
    assert message.startswith("json.decoder.JSONDecodeError: Expecting value")
    assert "decoder.py" in message


def words(message: str) -> TerminationMessage:
    return TerminationMessage(result="Failed", reason="RunError", message=message, exit_code=1, window=2)


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec=None), max_size=9000) | st.text('\x00\n"€𝄞', min_size=3000, max_size=6000))
def test_words_fit_and_stay_readable(message: str) -> None:
    document = encode(words(message))
    assert len(document) <= MAX_BYTES
    assert b"\n" not in document
    read = TerminationMessage.model_validate_json(document)
    kept = read.message.removesuffix("…")
    assert message.encode(errors="replace").decode().startswith(kept)
    assert (read.reason, read.window) == ("RunError", 2)


def test_long_message_uses_the_room_there_is() -> None:
    assert len(encode(words("x" * 10_000))) > MAX_BYTES - 8


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A termination log as Kubernetes makes it: an empty file that must stay the same file."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv(TERMINATION_LOG, str(path))
    return path


def message_in(path: Path) -> str:
    return TerminationMessage.model_validate_json(path.read_bytes()).message


def test_words_go_into_the_file_itself_and_to_stderr(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inode = log.stat().st_ino
    say(words("the volume is full"))
    assert log.stat().st_ino == inode
    assert log.read_bytes() == encode(words("the volume is full"))
    assert json.loads(capfd.readouterr().err) == json.loads(log.read_text())


def test_first_words_stay(log: Path) -> None:
    say(words("the volume is full"))
    say(words("lost rank 1"))
    assert message_in(log) == "the volume is full"


def test_same_words_that_tell_more_stay(log: Path) -> None:
    brief, full = words("asked to stop"), words("asked to stop").model_copy(update={"accuracy": 0.75})
    for said in (brief, full, brief, full.model_copy(update={"step": 7, "window": 9})):
        say(said)
    assert TerminationMessage.model_validate_json(log.read_bytes()) == full


def test_file_that_holds_no_words_is_written(log: Path) -> None:
    log.write_text("[1]")
    say(words("new"))
    assert message_in(log) == "new"


def test_words_that_know_better_replace_others(log: Path) -> None:
    say(words("a rather long message: lost rank 1"))
    say(words("killed"), replace=True)
    assert message_in(log) == "killed"


def test_words_of_an_earlier_attempt_are_removed(log: Path) -> None:
    log.write_text("the earlier attempt's")
    clear()
    say(words("new"))
    assert message_in(log) == "new"


@pytest.mark.parametrize("path", ["", "absent/folder/log"])
def test_words_without_a_file_are_said_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    monkeypatch.setenv(TERMINATION_LOG, str(tmp_path / path) if path else "")
    clear()
    say(words("only here"))
    assert "only here" in capfd.readouterr().err


def test_log_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(TERMINATION_LOG, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        say(words("x"))
    assert str(tmp_path) in caplog.text


def test_words_are_compact_json_with_outside_names() -> None:
    document: dict[str, Any] = json.loads(
        encode(TerminationMessage(result="Complete", reason="Completed", message="", exit_code=0))
    )
    assert document == {"result": "Complete", "reason": "Completed", "message": "", "exitCode": 0}


def test_words_hold_no_secret() -> None:
    words = describe_failure(ConfigurationError("https://user:s3cr3t@host refuses HF_TOKEN=s3cr3t"))
    assert "s3cr3t" not in encode(words).decode()
    assert "https://[redacted]@host refuses HF_TOKEN=[redacted]" in encode(words).decode()
