"""Lines of log, as programs and as people read them."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from spinrun_api.documents import parse_run
from spinrun_protocol.logs import facts_of, log_to_stderr, plain
from unit.api.invalid_runs import MINIMAL

logger = logging.getLogger("spinrun_worker.trainer.coordinator")


@pytest.fixture(autouse=True)
def handlers() -> Generator[None]:
    """The handlers of this process are pytest's, and come back."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = before
    root.setLevel(level)


def begin(wanted: str | None, component: str = "trainer") -> None:
    """A trainer in window 3 of a run."""
    facts = log_to_stderr(component, environment={} if wanted is None else {"SPINRUN_LOG_FORMAT": wanted})
    facts.always |= facts_of(parse_run(MINIMAL), attempt=2)
    facts.now = lambda: {"rank": 0, "window": 3, "step": 12}


def test_a_line_for_programs_says_where_the_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    begin("json")
    logger.info("window %d done", 3, extra={"pairs": 7})
    line = json.loads(capsys.readouterr().err)
    assert abs(datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)).total_seconds() < 5
    assert line == {
        "level": "INFO",
        "logger": "spinrun_worker.trainer.coordinator",
        "message": "window 3 done",
        "component": "trainer",
        "namespace": "default",
        "run": "demo",
        "attempt": 2,
        "rank": 0,
        "window": 3,
        "step": 12,
        "pairs": 7,
    }


def test_an_exception_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    begin("json")
    try:
        raise ValueError("not a number")
    except ValueError:
        logger.exception("broken")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: not a number")


@pytest.mark.parametrize("wanted", ["text", None])
def test_a_line_for_people_says_the_moment_alone(wanted: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    begin(wanted)
    logger.info("window %d done", 3)
    line = capsys.readouterr().err
    assert re.fullmatch(r"[-0-9]+ [:0-9]+,\d{3} INFO rank 0 window 3 step 12 [\w.]+\.coordinator: window 3 done\n", line)


def test_what_a_line_says_itself_counts(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("operator", environment={"SPINRUN_LOG_FORMAT": "text"})
    logger.warning("lost", extra={"run": "demo", "namespace": "team"})
    assert " WARNING namespace team run demo spinrun_worker.trainer.coordinator: lost\n" in capsys.readouterr().err


def test_a_format_that_there_is_not_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    begin("yaml")
    assert "SPINRUN_LOG_FORMAT must be json or text, got 'yaml'" in capsys.readouterr().err


def test_lines_for_programs_can_be_read_by_people(capsys: pytest.CaptureFixture[str]) -> None:
    begin("json")
    logger.info("window %d done", 3)
    programs = capsys.readouterr().err.strip()
    begin("text")
    logger.info("window %d done", 3)
    people = capsys.readouterr().err.strip()
    length = len("2026-11-21 13:55:54,117")
    assert plain(programs)[length:] == people[length:]
    assert abs(datetime.fromisoformat(plain(programs)[:length].replace(",", ".")) - datetime.now()).total_seconds() < 5


@pytest.mark.parametrize("line", ["INFO: started", "{}", '{"time": 3}', "17", "null", '{"time": "soon", "level": "INFO"}'])
def test_lines_of_others_stay_as_they_are(line: str) -> None:
    assert plain(line) == line


def test_the_launcher_knows_the_run_of_its_ranks(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(MINIMAL))
    command = [sys.executable, "-m", "spinrun_worker.trainer.launch", "--module", "none_such"]
    command += ["--run", str(tmp_path / "run.yaml"), "--attempt", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env={"SPINRUN_LOG_FORMAT": "json"}, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"level"')]
    assert lines
    facts = {tuple(line[name] for name in ("logger", "component", "namespace", "run", "attempt", "node")) for line in lines}
    assert facts == {("spinrun_worker.trainer.ranks.launcher", "launcher", "default", "demo", 7, 0)}


@pytest.mark.parametrize("wanted", ["json", "text"])
def test_a_line_tells_no_secret(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    begin(wanted)
    try:
        raise ValueError("https://user:s3cr3t@host refuses Bearer s3cr3t.s3cr3t")
    except ValueError:
        logger.exception(
            "HF_TOKEN=s3cr3t and %s", ["--api-key", "s3cr3t"], extra={"api_key": "s3cr3t", "sent": {"password": "s3cr3t"}}
        )
    shown = capsys.readouterr().err
    assert "s3cr3t" not in shown
    assert "HF_TOKEN=[redacted]" in shown
    assert "https://[redacted]@host refuses" in shown


def test_a_run_without_secrets_is_logged_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    begin("json")
    logger.info("window done", extra={"prompt_tokens": 7, "tokens": [1, 2], "trouble": None})
    line = json.loads(capsys.readouterr().err)
    assert (line["prompt_tokens"], line["tokens"], line["trouble"]) == (7, [1, 2], None)
