"""`spinrun explain` of a folder: what the run is doing, what limits it, what to change."""

import json
from pathlib import Path

import pytest

from spinrun_cli.local.explain import load_explained
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.show.explanation import document, text
from spinrun_protocol.wire import Progress
from unit.cli.conftest import NUM_WINDOWS
from unit.cli.shell import Shell


def test_a_run_is_explained_with_the_figures_that_the_sentences_go_by(spinrun: Shell, finished_run: Path) -> None:
    code, out, error = spinrun("explain", str(finished_run))
    assert (code, error) == (0, "")
    assert (
        out
        == """\
adding: Complete: 5 windows, 20 steps
held-out accuracy 0.511 → 0.822 (best 0.822, version 5)
prompts of windows 2 to 4: 72 % pairs, 25 % all right, 3 % all wrong
time of windows 2 to 4, 42 s each: 38 % train, 35 % generate, 8 % evaluate, 7 % reference, 5 % checkpoint, \
4 % activate, 3 % publish

What limits it, the costliest first:
1. The rollouts wait for the trainer 57 % of the time of windows 2 to 4 (72.1 of 127.5 s).
   → set spec.method.overlap: 1, so that they answer the next window's prompts meanwhile, or give
     the trainer some of their hardware
2. 25 % of the prompts of windows 2 to 4 (48 of 192) have only right answers, and teach nothing.
   → set spec.method.sampling.passRate.max below 1, so that such prompts are left out for a while,
     or take harder ones (spec.data.prompts)
3. 5 % of the answers of windows 2 to 4 were cut off at spec.rollout.maxTokens.
   → raise spec.rollout.maxTokens, or have the prompts ask for shorter answers
"""
    )


def test_programs_get_the_same_as_a_document(spinrun: Shell, finished_run: Path) -> None:
    explained = json.loads(spinrun("explain", str(finished_run), "--output", "json")[1])
    assert (explained["name"], explained["windows"]) == ("adding", [2, 3, 4])
    assert explained["prompts"]["all_right"] == 48
    assert [finding.keys() for finding in explained["findings"]] == [{"says", "change"}] * 3


def test_a_ledger_alone_is_explained_without_saying_what_its_trainer_does(finished_run: Path) -> None:
    lines = text(load_explained(finished_run / "ledger")).splitlines()
    assert lines[0] == "adding: a ledger; whether a trainer works on it cannot be seen here"
    assert lines[1].startswith("held-out accuracy")


@pytest.mark.parametrize(
    ("windows", "want"),
    [
        (0, ["What limits it cannot be told before its first window has ended."]),
        (1, ["Whether it learns cannot be told before two versions are evaluated (spec.data.evaluation)."]),
        (NUM_WINDOWS, []),
    ],
)
def test_what_cannot_be_told_yet_is_said(finished_run: Path, windows: int, want: list[str]) -> None:
    metrics = finished_run / "ledger" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if '"event":"window"' in line]
    metrics.write_text("".join(lines[: ends[windows - 1] if windows else 0] if windows < NUM_WINDOWS else lines))
    assert document(load_explained(finished_run))["notes"] == want


def test_what_the_trainer_waits_for_is_in_the_runs_way(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "is_held", lambda _: True)
    (finished_run / "last-words.json").unlink()
    progress = Progress(
        uid="u", attempt=0, activity="score", window=2, windows=5, step=8, total_steps=20, trouble="the judge is down"
    )
    RunFolder(finished_run).save_progress(progress)
    explained = load_explained(finished_run)
    assert explained.obstacles == ["the judge is down"]
    assert text(explained).startswith("adding: Running, window 3/5 score  step 8/20")


def test_what_is_no_run_or_damaged_is_refused_as_by_the_report(spinrun: Shell, finished_run: Path, tmp_path: Path) -> None:
    code, _, error = spinrun("explain", str(tmp_path / "nowhere"))
    assert (code, "there is no folder" in error) == (2, True)
    metrics = finished_run / "ledger" / "metrics.jsonl"
    metrics.write_text("nonsense\n" + metrics.read_text())
    code, out, error = spinrun("explain", str(finished_run))
    assert (code, out) == (spinrun("report", str(finished_run))[0], "")
    assert "line 1" in error
