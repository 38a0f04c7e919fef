"""Windows that ask prompts until they have enough pairs: full, whatever share of prompts gives none, and unchanged by a crash."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spinrun_protocol.ledger import Drawn
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import NoPairsError, Preempted
from spinrun_worker.ledger import read_metrics, read_pairs, read_samples
from spinrun_worker.trainer.ranks.distributed import Distributed
from support.scripted_agent import random_digits
from support.scripted_training import ScriptedRun, hurry, kill_before_each_commit

Json = dict[str, Any]

TRAINER: Json = {"pairsPerStep": 3, "learningRate": 1e-2, "tokensPerMicroBatch": 128, "computeDtype": "float32"}
METHODS: dict[str, Json] = {
    "in turn": {"refUpdateFreq": 2},
    "ahead, older reference, replay": {"refUpdateFreq": 0, "rolloutUpdateFreq": 2, "overlap": 1, "replayWindows": 1},
    "grpo": {"refUpdateFreq": 2, "name": "grpo", "loss": "grpo"},
}

MakeRun = Callable[..., ScriptedRun]


def often_tied(digest: str, prompt: tuple[int, ...], index: int) -> Sample:
    """As `random_digits`, but three prompts of five have only wrong answers."""
    sample = random_digits(digest, prompt, index)
    return sample if sum(map(ord, digest + str(prompt))) % 5 < 2 else sample.model_copy(update={"text": "2"})


@pytest.fixture
def make_run(tmp_path: Path, alone: Distributed, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Runs of two windows of two steps of three pairs, of which each asks twelve prompts at most for every three pairs."""
    hurry(monkeypatch)
    numbers = itertools.count()

    def make(name: str = "in turn", *, windows: int = 2, sampling: Json | None = None) -> ScriptedRun:
        spec: Json = {
            "method": METHODS[name] | ({"sampling": sampling} if sampling else {}),
            "data": {"prompts": {"source": "arithmetic"}},
            "trainer": TRAINER,
            "duration": {"windows": windows},
        }
        return ScriptedRun(alone, tmp_path / f"run-{next(numbers)}", spec, answer=often_tied)

    return make


def drawn(run: ScriptedRun) -> list[Drawn]:
    found = [run.ledger.manifest("window", number).drawn for number in run.ledger.numbers("window")]
    assert None not in found
    return [each for each in found if each is not None]


def asked(run: ScriptedRun) -> int:
    return sum(int(event.split()[2].removesuffix("x2")) for event in run.events if event.startswith("ask"))


@pytest.mark.parametrize("name", METHODS)
def test_windows_are_full_and_the_next_one_continues_in_the_stream(make_run: MakeRun, name: str) -> None:
    run = make_run(name, windows=3).attempt()
    folders = [run.ledger.layout.window(number) for number in range(3)]
    assert [len(read_pairs(folder / "pairs.parquet")) for folder in folders] == [6, 6, 6]
    positions = drawn(run)
    assert positions[0].start == 0
    assert all(one.stop == other.start for one, other in itertools.pairwise(positions))
    for folder, position in zip(folders, positions, strict=True):
        assert len(read_samples(folder / "samples.parquet")) == position.stop - position.start > 6
    figures = [line.values for line in read_metrics(run.ledger.layout.metrics) if line.event == "window"]
    assert [each["prompts"] for each in figures] == [position.stop - position.start for position in positions]
    assert all(each["paired_prompts"] == 6 and each["all_wrong"] > 0 for each in figures)
    outcomes = ("paired_prompts", "all_right", "all_wrong", "other_ties", "identical", "unrated")
    assert [sum(each[name] for name in outcomes) for each in figures] == [each["prompts"] for each in figures]


def test_answers_are_scored_while_a_window_is_filled_and_that_is_not_sampling(make_run: MakeRun) -> None:
    events = make_run(windows=1).attempt().events
    assert events.count("generate") == 1
    scored = [number for number, event in enumerate(events) if event == "score"]
    asked_on = [number for number, event in enumerate(events) if event.startswith("ask") and number > events.index("generate")]
    assert any(score < ask for score in scored for ask in asked_on)


def test_a_window_ends_with_the_prompt_that_fills_it(make_run: MakeRun) -> None:
    run = make_run(windows=1).attempt()
    folder = run.ledger.layout.window(0)
    last = read_samples(folder / "samples.parquet")[-1].prompt.id
    assert read_pairs(folder / "pairs.parquet")[-1].prompt_id == last


def test_a_window_that_cannot_be_filled_asks_the_most_prompts_and_trains_on_what_it_has(make_run: MakeRun) -> None:
    run = make_run(windows=1, sampling={"maxPromptsFactor": 1.5}).attempt()
    assert drawn(run) == [Drawn(start=0, stop=9)]
    assert asked(run) == 9
    assert 0 < len(read_pairs(run.ledger.layout.window(0) / "pairs.parquet")) < 6


def test_prompts_without_any_pair_end_the_run_after_three_windows_of_the_most_prompts(make_run: MakeRun) -> None:
    run = make_run(windows=5)
    run.answer = lambda digest, prompt, index: random_digits(digest, prompt, index).model_copy(update={"text": "2"})
    with pytest.raises(NoPairsError, match="windows 0 to 2 gave no pair"):
        run.attempt()
    assert drawn(run) == [Drawn(start=0, stop=24), Drawn(start=24, stop=48), Drawn(start=48, stop=72)]


@pytest.mark.parametrize("name", ["in turn", "ahead, older reference, replay"])
def test_a_run_killed_before_any_commit_ends_in_the_same_state(make_run: MakeRun, name: str) -> None:
    assert kill_before_each_commit(lambda: make_run(name)) >= 5, "three versions, two windows"


def test_a_run_stopped_at_any_point_continues_as_if_it_had_not(make_run: MakeRun) -> None:
    want, stopped = make_run().attempt().end_state(), 0
    for stop_at in itertools.count(1):
        run = make_run()
        try:
            run.attempt(stop_at=stop_at)
        except Preempted:
            assert run.attempt().end_state() == want, f"stopped at look {stop_at}"
            stopped += 1
        else:
            break
    assert stopped > 5


def test_a_run_may_go_over_to_windows_of_pairs_and_back(make_run: MakeRun) -> None:
    """Where the spec says how many prompts a window has, its place in the stream follows from that alone."""
    run = make_run(windows=1)
    run.spec["trainer"] = {**TRAINER, "pairsPerStep": None, "promptsPerStep": 3}
    run.attempt()
    assert run.ledger.manifest("window", 0).drawn is None
    run.spec |= {"trainer": TRAINER, "duration": {"windows": 2}}
    run.attempt()
    continued = run.ledger.manifest("window", 1).drawn
    assert continued is not None
    assert continued.start == 6
