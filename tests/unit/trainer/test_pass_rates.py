"""Windows that draw prompts of a certain pass rate: what they leave out, what the ledger remembers, and what a crash changes."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spinrun_protocol.ledger import Drawn
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import NoPromptsError
from spinrun_worker.ledger import TornError, read_metrics, read_rates, read_samples
from spinrun_worker.records import PassRate
from spinrun_worker.trainer.ranks.distributed import Distributed
from support.scripted_agent import random_digits
from support.scripted_training import Killed, ScriptedRun, hurry, kill_before_each_commit

Json = dict[str, Any]

TRAINER: Json = {"learningRate": 1e-2, "tokensPerMicroBatch": 128, "computeDtype": "float32"}
SIZES: dict[str, Json] = {"prompts": {"promptsPerStep": 3}, "pairs": {"pairsPerStep": 2}}
METHODS: dict[str, Json] = {
    "in turn": {"refUpdateFreq": 2},
    "ahead, older reference, replay": {"refUpdateFreq": 0, "rolloutUpdateFreq": 2, "overlap": 1, "replayWindows": 1},
}
BOTH = pytest.mark.parametrize(("name", "size"), [*itertools.product(METHODS, SIZES)])

MakeRun = Callable[..., ScriptedRun]


def some_hopeless(digest: str, prompt: tuple[int, ...], index: int) -> Sample:
    """Four prompts of ten are always right and three always wrong, one of the others with some weights; else half is right."""
    sample, kind = random_digits(digest, prompt, index), prompt[0] % 10
    if kind < 7:
        return sample.model_copy(update={"text": "1" if kind < 4 else "2"})
    return sample.model_copy(update={"text": "1"}) if kind == 9 and ord(digest[0]) % 2 else sample


@pytest.fixture
def make_run(tmp_path: Path, alone: Distributed, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Runs over ten prompts, so that an epoch is a window or two, each in a ledger of its own."""
    hurry(monkeypatch)
    numbers = itertools.count()

    def make(name: str = "in turn", size: str = "prompts", *, windows: int = 3, **pass_rate: Any) -> ScriptedRun:
        band = {"min": 0.1, "max": 0.9, "retryAfterEpochs": 1} | pass_rate
        spec: Json = {
            "method": METHODS[name] | {"sampling": {"passRate": band}},
            "data": {"prompts": {"source": "arithmetic"}},
            "trainer": TRAINER | SIZES[size],
            "duration": {"windows": windows},
        }
        return ScriptedRun(alone, tmp_path / f"run-{next(numbers)}", spec, answer=some_hopeless, num_prompts=10)

    return make


def drawn(run: ScriptedRun) -> list[Drawn]:
    found = [run.ledger.manifest("window", number).drawn for number in run.ledger.numbers("window")]
    return [each for each in found if each is not None]


def asked(run: ScriptedRun, window: int) -> list[str]:
    """The rows that a window asked, in order."""
    groups = read_samples(run.ledger.layout.window(window) / "samples.parquet")
    return [group.prompt.id.partition("#")[0] for group in groups]


def rates_after(run: ScriptedRun, window: int) -> dict[str, PassRate]:
    return read_rates(run.ledger.layout.window(window) / "rates.parquet")


def figures(run: ScriptedRun, name: str) -> list[float]:
    return [line.values[name] for line in read_metrics(run.ledger.layout.metrics) if line.event == "window"]


@BOTH
def test_windows_leave_out_what_was_always_right_or_always_wrong(make_run: MakeRun, name: str, size: str) -> None:
    """Rollouts in turn know of the window before, those a window ahead of the one before that."""
    run = make_run(name, size, windows=5).attempt()
    overlap = METHODS[name].get("overlap", 0)
    for window in range(1, 5):
        known = rates_after(run, window - 1 - overlap) if window > overlap else {}
        for group in read_samples(run.ledger.layout.window(window) / "samples.parquet"):
            row, _, epoch = group.prompt.id.partition("#")
            last = known.get(row)
            assert last is None or 0.1 <= last.rate <= 0.9 or int(epoch) > last.epoch + 1
    positions = drawn(run)
    assert positions[0].start == 0
    assert all(one.stop == other.start for one, other in itertools.pairwise(positions))
    assert [each.stop - each.start - each.skipped for each in positions] == [len(asked(run, window)) for window in range(5)]
    assert figures(run, "skipped_prompts") == [each.skipped for each in positions]
    assert sum(each.skipped for each in positions) > 0
    assert figures(run, "prompts") == [len(asked(run, window)) for window in range(5)]


def test_the_ledger_remembers_the_last_rate_of_every_prompt(make_run: MakeRun) -> None:
    run = make_run(windows=3).attempt()
    want: dict[str, PassRate] = {}
    for window in range(3):
        groups = read_samples(run.ledger.layout.window(window) / "samples.parquet")
        for group in groups:
            row, _, epoch = group.prompt.id.partition("#")
            right = sum(sample.text.count("1") > 0 for sample in group.samples)
            want[row] = PassRate(right / 2, int(epoch))
        assert rates_after(run, window) == want
        inside = sum(0.1 <= each.rate <= 0.9 for each in want.values())
        assert figures(run, "pass_rate/inside")[window] == pytest.approx(inside / len(want))
        means = [sum(group.rewards) / 2 for group in groups]  # type: ignore[arg-type]
        assert figures(run, "pass_rate/mean")[window] == pytest.approx(sum(means) / len(means))


@BOTH
def test_a_run_killed_before_any_commit_ends_in_the_same_state(make_run: MakeRun, name: str, size: str) -> None:
    assert kill_before_each_commit(lambda: make_run(name, size)) >= 7, "four versions, three windows"


def test_a_run_without_pass_rates_may_go_over_to_them(make_run: MakeRun) -> None:
    """Windows that were written without rates know of none; the place in the stream continues."""
    run = make_run(windows=1)
    sampling = run.spec["method"].pop("sampling")
    run.attempt()
    run.spec["method"]["sampling"] = sampling
    run.spec["duration"] = {"windows": 3}
    run.attempt()
    assert drawn(run)[0].start == 6
    assert asked(run, 1) == asked_without(make_run, 1), "no rate is known yet"


def asked_without(make_run: MakeRun, window: int) -> list[str]:
    run = make_run(windows=window + 1)
    del run.spec["method"]["sampling"]
    return asked(run.attempt(), window)


# --- no prompt inside -----------------------------------------------------------------------------------------------


def always_right(digest: str, prompt: tuple[int, ...], index: int) -> Sample:
    return random_digits(digest, prompt, index).model_copy(update={"text": "1"})


@BOTH
def test_a_run_whose_prompts_are_all_outside_ends_after_an_epoch_and_says_how_they_are_distributed(
    make_run: MakeRun, name: str, size: str
) -> None:
    run = make_run(name, size, windows=9, max=0.4, min=0.3, retryAfterEpochs=5)
    want = (
        r"window \d has no prompt: method\.sampling\.passRate: for an epoch no prompt has had a pass rate from 0\.3 to 0\.4\. "
        r"Prompts by pass rate: 0: 3, below 0\.25: 0, below 0\.5: 0, below 0\.75: \d, below 1: 0, 1: \d\. .*whenNone: widen"
    )
    with pytest.raises(NoPromptsError, match=want):
        run.attempt()
    last = max(run.ledger.numbers("window"))
    assert len(rates_after(run, last)) == 10, "every prompt was asked once"
    assert run.ledger.numbers("weights")[-1] == last + 1, "what was asked was trained on, and is published"


@pytest.mark.parametrize("size", SIZES)
def test_the_bounds_are_widened_where_the_spec_says_so_and_people_are_told(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, size: str
) -> None:
    run = make_run(size=size, windows=3, min=0.2, max=0.4, retryAfterEpochs=9, whenNone="widen", widenBy=0.2)
    run.attempt()
    widened = figures(run, "pass_rate/widened")
    assert widened[-1] == 0.2
    assert any("The window takes prompts with pass rates from 0 to 0.6" in message for message in caplog.messages)


# --- hostile files --------------------------------------------------------------------------------------------------


def stopped_in_window_1(run: ScriptedRun) -> Path:
    """The pass rates by which window 1 is drawn, in a run whose trainer dies before it commits that window."""

    def dies(event: str) -> None:
        if event == "commit windows 000001":
            raise Killed(event)

    run.on_event = dies
    with pytest.raises(Killed):
        run.attempt()
    run.on_event = lambda _: None
    shutil.rmtree(run.ledger.layout.window(1))
    return run.ledger.layout.window(0) / "rates.parquet"


def test_damaged_rates_are_named(make_run: MakeRun) -> None:
    run = make_run()
    file = stopped_in_window_1(run)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(TornError, match=r"windows/000000/rates\.parquet has different content"):
        run.attempt()


def test_missing_rates_are_named(make_run: MakeRun) -> None:
    run = make_run()
    stopped_in_window_1(run).unlink()
    with pytest.raises(TornError, match=r"windows/000000/rates\.parquet is missing"):
        run.attempt()


def test_rates_of_another_run_are_named(make_run: MakeRun) -> None:
    run, other = make_run(), make_run(windows=1)
    other.answer = random_digits
    file = stopped_in_window_1(run)
    other.attempt()
    shutil.copy(other.ledger.layout.window(0) / "rates.parquet", file)
    with pytest.raises(TornError, match=r"windows/000000/rates\.parquet has"):
        run.attempt()
