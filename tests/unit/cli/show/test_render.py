"""What a person reads while a run is active."""

import io

import pytest
from rich.console import Console

from spinrun_api.status import Metrics, RolloutStatus
from spinrun_cli.local.reporter import LineReporter
from spinrun_cli.show.render import doing, figures, line, panel
from spinrun_cli.show.snapshot import Snapshot, WindowFigures
from spinrun_cli.show.text import clock, duration
from spinrun_protocol.wire import Activity, Progress


def snapshot(activity: Activity, *, accuracy: float | None = None, message: str = "", version: int = 2) -> Snapshot:
    progress = Progress(
        uid="u", attempt=1, activity=activity, window=2, windows=5, step=9, total_steps=20, version=version, prompts_done=12,
        prompts_total=64, rollouts=RolloutStatus(ready=1, desired=2, version=2), message=message, eta_seconds=135,
        metrics=Metrics(loss=0.61234, accuracy=accuracy, samples_per_second=31.5),
    )  # fmt: skip
    return Snapshot("adding", progress=progress, windows=[WindowFigures(0, 0.511)], children={"vllm-0": "ready"})


def test_a_line_says_where_the_run_is_and_how_good() -> None:
    assert line(snapshot("train", accuracy=0.667), elapsed=75) == (
        "[1:15]  window 3/5 train  step 9/20  loss 0.6123  accuracy 0.511 → 0.667  samples/s 31.5  version 2  rollouts 1/2 ready"
        "  2 min 15 s left"
    )


@pytest.mark.parametrize(
    ("shown", "want"),
    [
        (snapshot("generate"), "window 3/5 generate 12/64 prompts"),
        (snapshot("activate", message="no rollout serves version 2"), "window 3/5 activate (no rollout serves version 2)"),
        (snapshot("score", message="the judge does not answer"), "window 3/5 score (the judge does not answer)"),
        (snapshot("finished"), "finished"),
        (Snapshot("a", children={"vllm-0": "starting", "agent-0": "ready"}), "starting (vllm-0 starting)"),
        (Snapshot("a"), "starting"),
    ],
    ids=["generate", "activate", "score", "finished", "starting", "nothing yet"],
)
def test_what_a_run_does_is_said_in_words(shown: Snapshot, want: str) -> None:
    assert doing(shown) == want


def test_rollouts_that_are_behind_are_said_to_be() -> None:
    assert ("rollouts", "1/2 ready, serving version 2") in figures(snapshot("activate", version=3))


def test_the_first_evaluation_has_nothing_to_compare_with() -> None:
    assert "accuracy 0.511  " in line(snapshot("train", accuracy=0.511, version=0), elapsed=0)


def test_lines_come_when_something_changes_or_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [(100.0, "generate"), (101.0, "generate"), (102.0, "train"), (131.0, "train"), (132.5, "train")]
    times = iter(time for time, _ in steps)
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    reporter = LineReporter(started=0.0)
    for _, activity in steps:
        reporter.show(snapshot(activity))  # type: ignore[arg-type]

    clocks = [text.split("]")[0].lstrip("[") for text in capsys.readouterr().out.splitlines()]
    assert clocks == ["1:40", "1:42", "2:12"]


def test_the_terminal_shows_the_same_and_takes_no_markup_from_names() -> None:
    shown = snapshot("activate", message="[bold red]not markup[/]")
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(panel(shown, elapsed=75))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[bold red]not markup[/]" in text
    assert "step 9/20" in text


@pytest.mark.parametrize(("seconds", "want"), [(0, "0:00"), (75.9, "1:15"), (3661, "1:01:01")])
def test_clock(seconds: float, want: str) -> None:
    assert clock(seconds) == want


@pytest.mark.parametrize(("seconds", "want"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")])
def test_duration(seconds: float, want: str) -> None:
    assert duration(seconds) == want
