"""What is remembered of pass rates from window to window."""

from pathlib import Path

from spinrun_api.spec import PassRateBand
from spinrun_protocol.wire import Sample
from spinrun_worker.ledger import Ledger
from spinrun_worker.records import PassRate, PromptRecord, ScoredGroup
from spinrun_worker.trainer.storage.rates import RateMemory

SAMPLE = Sample(tokens=(5,), text="5", finish_reason="stop")


def group(prompt_id: str, *rewards: float | None) -> ScoredGroup:
    return ScoredGroup(PromptRecord(prompt_id, (1,), ""), (SAMPLE,) * len(rewards), rewards)


def memory() -> RateMemory:
    return RateMemory(Ledger(Path("/none"), "uid"), PassRateBand())


def test_the_last_rate_of_a_prompt_replaces_the_ones_before() -> None:
    rates = memory()
    rates.learn(0, [group("a#0", 1.0, 0.0), group("b#0", 1.0, 1.0), group("a#1", 0.0, 0.0)])
    assert rates.after(0) == {"a": PassRate(0.0, 1), "b": PassRate(1.0, 0)}
    rates.learn(1, [group("b#1", 1.0, None)])
    assert rates.after(1) == {"a": PassRate(0.0, 1), "b": PassRate(1.0, 1)}
    assert rates.after(0)["b"] == PassRate(1.0, 0), "what was known then stays so, for rollouts that are a window ahead"


def test_a_prompt_without_a_rated_answer_has_none_and_so_stays_in() -> None:
    rates = memory()
    rates.learn(0, [group("a#0", 0.0)])
    assert rates.learn(1, [group("a#1", None, None), group("b#0")]) == {}


def test_repeating_a_window_changes_nothing() -> None:
    rates = memory()
    rates.learn(0, [group("a#0", 0.0)])
    once = rates.learn(1, [group("a#1", 1.0)])
    assert rates.learn(1, [group("a#1", 1.0)]) == once == {"a": PassRate(1.0, 1)}


def test_only_the_newest_windows_stay_in_memory() -> None:
    rates = memory()
    for window in range(10):
        rates.learn(window, [group(f"{window}#0", 1.0)])
    assert len(rates.after(9)) == 10
    assert sorted(rates._known) == [7, 8, 9]
