"""`spinrun watch` and `spinrun logs` of a local run."""

import fcntl
import io
import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from spinrun_api.status import Metrics
from spinrun_cli.local import logs as local_logs
from spinrun_cli.local import watch as watch_folder
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.log_lines import LineWriter
from spinrun_cli.show.render import line, panel, sparkline
from spinrun_cli.show.snapshot import Outcome, Snapshot, WindowFigures
from spinrun_cli.terminal import lines
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Activity, Progress
from unit.cli.shell import Shell


def progress(activity: Activity = "train", *, step: int = 9, accuracy: float | None = 0.667) -> Progress:
    """What rank 0 says in the third window."""
    return Progress(
        uid="u", attempt=1, activity=activity, window=2, windows=5, step=step, total_steps=20, version=2, eta_seconds=75,
        metrics=Metrics(loss=0.61234, accuracy=accuracy),
    )  # fmt: skip


@contextmanager
def at_work(folder: Path) -> Generator[None]:
    """Holds the folder as `spinrun local` does."""
    with (folder / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- watching ------------------------------------------------------------------------------------------------------


def test_complete_run_ends_the_watch_with_zero_and_its_termination_message(spinrun: Shell, finished_run: Path) -> None:
    assert spinrun("watch", str(finished_run)) == (0, "adding: Complete: 5 windows, 20 steps\n", "")


def test_document_has_the_figures_by_window(spinrun: Shell, finished_run: Path) -> None:
    document = json.loads(spinrun("watch", str(finished_run), "-o", "json")[1])
    assert [each["accuracy"] for each in document["byWindow"]] == [0.511, 0.578, 0.667, 0.778, 0.8, 0.822]
    assert document["byWindow"][1] == {
        "window": 1, "accuracy": 0.578, "reward": pytest.approx(0.48), "pairs": 54, "ties": 10, "samplesPerSecond": 32,
    }  # fmt: skip
    assert document["outcome"] == {"result": "Complete", "message": "5 windows, 20 steps"}


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (
            TerminationMessage(result="Failed", reason="NoPairs", message="no window makes a pair", exit_code=1),
            "Failed: no window makes a pair",
        ),
        (
            TerminationMessage(result="Preempted", reason="Preempted", message="asked to stop", exit_code=3),
            "Stopped: asked to stop; `spinrun",
        ),
        (None, "Stopped: it was cut off before"),
    ],
    ids=["failed", "stopped", "killed"],
)
def test_run_that_is_not_complete_ends_the_watch_with_one(
    spinrun: Shell, finished_run: Path, words: TerminationMessage | None, want: str
) -> None:
    path = finished_run / "last-words.json"
    path.write_text(words.model_dump_json(by_alias=True)) if words else path.unlink()
    code, out, _ = spinrun("watch", str(finished_run))
    assert code == 1
    assert f"adding: {want}" in out


def test_watch_follows_a_run_until_nobody_works_on_it(
    spinrun: Shell, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "POLL_SECONDS", 0.05)
    folder, words = RunFolder(finished_run), (finished_run / "last-words.json").read_text()
    folder.clear_termination()
    folder.save_progress(progress("generate"))
    started = threading.Event()

    def work() -> None:
        with at_work(finished_run):
            started.set()
            time.sleep(0.3)
            folder.save_progress(progress("train"))
            time.sleep(0.3)
            folder.termination_file.write_text(words)

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    code, out, _ = spinrun("watch", str(finished_run))
    worker.join()
    assert code == 0
    assert [text.split("  ")[1] for text in out.splitlines()[:2]] == [
        "Running, window 3/5 generate",
        "Running, window 3/5 train",
    ]
    assert out.splitlines()[2:] == ["adding: Complete: 5 windows, 20 steps"]


def test_progress_of_an_attempt_that_has_ended_is_not_shown(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    folder.save_progress(progress())
    assert [folder.next_attempt(), folder.next_attempt()] == [1, 2]
    with at_work(finished_run):
        snapshot = watch_folder.look(folder)
    assert (snapshot.phase, snapshot.progress, snapshot.attempt) == ("Starting", None, 2)


def test_ledger_alone_cannot_be_watched(spinrun: Shell, finished_run: Path) -> None:
    code, _, error = spinrun("watch", str(finished_run / "ledger"))
    assert code == 2
    assert "is a ledger and not the folder of a local run" in error


def test_line_comes_when_there_is_news_and_not_with_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    show = lines()
    for state in (progress(step=9), progress(step=10), progress("checkpoint", step=10)):
        show(Snapshot("adding", "Running", 1, state))
    out = capsys.readouterr().out.splitlines()
    assert [text.split("  ")[1:3] for text in out] == [
        ["Running, window 3/5 train", "step 9/20"],
        ["Running, window 3/5 checkpoint", "step 10/20"],
    ]


def test_line_has_the_pairs_and_ties_of_the_newest_window() -> None:
    windows = [WindowFigures(0, 0.5, pairs=47, ties=17), WindowFigures(1, 0.667)]
    assert line(Snapshot("adding", "Running", 1, progress(), windows)).endswith(
        "accuracy 0.500 → 0.667  version 2  pairs 47, ties 17  1 min 15 s left"
    )


def test_line_says_what_stands_in_the_way() -> None:
    snapshot = Snapshot("adding", "Pending", 2, trouble="QuotaExceeded: raise\x1b the quota")
    assert line(snapshot) == "adding:  Pending  attempt 2  QuotaExceeded: raise� the quota"


@pytest.mark.parametrize(
    ("row", "want"),
    [
        (
            "2026-11-21 13:55:54,117 INFO rank 0 window 2 step 8 spinrun_worker.trainer.coordinator: version 2: all",
            "13:55:54 version 2: all",
        ),
        ("2026-11-21 13:55:54,117 WARNING rank 0 spinrun_worker.trainer.ranks.stop: stopping", "13:55:54 WARNING stopping"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ('{"result": "Complete"}', '{"result": "Complete"}'),
    ],
)
def test_news_are_lines_of_log_without_what_is_said_elsewhere(finished_run: Path, row: str, want: str) -> None:
    (finished_run / "logs").mkdir(exist_ok=True)
    (finished_run / "logs" / "trainer.log").write_text(f"--- 2026-11-21 13:55:00 python\n{row}\n")
    with at_work(finished_run):
        assert watch_folder.look(RunFolder(finished_run)).news == [want]


def test_screen_shows_curve_table_news_and_outcome() -> None:
    windows = [WindowFigures(0, 0.5, 0.25, 47, 17, 12.8), WindowFigures(1, 0.75)]
    outcome = Outcome("Complete", "all [bold]done[/]")
    console = Console(file=io.StringIO(), width=100)
    console.print(panel(Snapshot("adding", "Running", 1, progress(), windows, news=["[red]a log line[/]"], outcome=outcome)))
    assert isinstance(console.file, io.StringIO)
    shown = [" ".join(text.split()) for text in console.file.getvalue().splitlines()]
    assert shown[0] == "adding Running, window 3/5 train"
    assert shown[1].startswith("step 9/20")
    assert shown[1].endswith("1 min 15 s left")
    assert shown[3:] == [
        "accuracy ▁█ 0.500 → 0.750, best 0.750",
        "window accuracy reward pairs ties samples/s",
        "0 0.500 0.250 47 17 12.8",
        "1 0.750",
        "[red]a log line[/]",
        "Complete: all [bold]done[/]",
    ]


def test_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.3, 0.3]) == "▁▁"


# --- logs ----------------------------------------------------------------------------------------------------------


def life(number: int, *texts: str) -> str:
    """A life of a process as it stands in its log."""
    return "".join([f"--- 2026-01-01 12:00:0{number} program --port 1\n", *(f"{text}\n" for text in texts)])


@pytest.fixture
def logs(finished_run: Path) -> Path:
    """Folder of a run whose trainer had two lives."""
    folder = finished_run / "logs"
    folder.mkdir()
    (folder / "trainer.log").write_text(life(1, "out of memory") + life(2, "loading", "10%\r99%\r100%", "trained"))
    (folder / "vllm-0.log").write_text(life(1, "ready"))
    return finished_run


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["--tail", "1"], ["[trainer] trained", "[vllm-0] ready"]),
        (["--role", "trainer"], ["--- 2026-01-01 12:00:02 program --port 1", "loading", "100%", "trained"]),
        (["--rank", "0", "--tail", "1"], ["trained"]),
        (["--pod", "vllm-0", "--tail", "1", "--follow"], ["ready"]),
        (["--previous", "--tail", "1"], ["out of memory"]),
        (["--role", "vllm", "--tail", "1", "-o", "json"], ['{"process": "vllm-0", "line": "ready"}']),
    ],
    ids=["all", "role", "rank", "one", "previous", "json"],
)
def test_logs_of_the_processes_that_are_meant_are_printed(
    spinrun: Shell, logs: Path, arguments: list[str], want: list[str]
) -> None:
    code, out, _ = spinrun("logs", str(logs), *arguments)
    assert (code, out.splitlines()) == (0, want)


def test_a_log_is_followed_until_the_run_has_ended(spinrun: Shell, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_logs, "POLL_SECONDS", 0.05)
    started = threading.Event()

    def work() -> None:
        with at_work(logs), (logs / "logs" / "trainer.log").open("a") as log:
            started.set()
            for text in ("hal", "f a line\n", "the last\n"):
                time.sleep(0.15)
                log.write(text)
                log.flush()

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    code, out, _ = spinrun("logs", str(logs), "--role", "trainer", "--tail", "0", "-f")
    worker.join()
    assert (code, out.splitlines()) == (0, ["half a line", "the last"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pod", "vllm-7"], "has no such log; it has trainer, vllm-0"),
        (["--role", "vllm", "--previous"], "no such process of"),
        (["--rank", "0", "--role", "vllm"], "--rank can only be combined with --role trainer"),
        (["--follow", "--previous"], "--follow and --previous are mutually exclusive"),
    ],
)
def test_log_that_is_not_there_is_refused(spinrun: Shell, logs: Path, arguments: list[str], words: str) -> None:
    code, out, error = spinrun("logs", str(logs), *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(error.split())


def test_ledger_has_no_logs(spinrun: Shell, finished_run: Path) -> None:
    code, _, error = spinrun("logs", str(finished_run / "ledger"))
    assert (code, "holds no logs" in error) == (2, True)


def test_local_run_has_no_events(spinrun: Shell, finished_run: Path) -> None:
    code, _, error = spinrun("events", str(finished_run))
    assert (code, "spinrun logs" in error) == (2, True)


@pytest.mark.parametrize("as_json", [True, False])
def test_lines_for_programs_are_plain_to_people_and_as_they_are_to_programs(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {
        "level": "INFO",
        "logger": "a.b",
        "message": "done",
        "run": "demo",
        "window": 3,
        "time": "2026-11-21T13:55:54.117+00:00",
    }
    LineWriter(as_json=as_json)("trainer", json.dumps(fields))
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(json.loads(printed)["line"]) == fields
    else:
        assert printed.endswith(",117 INFO window 3 a.b: done\n")
