"""SPPO through the real trainer, by win rates and by advantages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.trainer.test_windows import logprobs
from spinrun_worker.ledger import read_pairs, read_samples
from spinrun_worker.records import Pair
from support.trainer_process import Attempts


def test_sppo_trains_towards_win_rates(attempts: Attempts, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    method = {"name": "sppo", "loss": "sppo", "sppo": {"eta": 100.0}, "refUpdateFreq": 2}

    assert attempts.run(ledger, method=method) == 0, attempts.log(1).read_text()

    # Of two scripted answers one has the reward 1, one 0: the better wins with σ(1), and draws with itself.
    win_rate = (0.5 + 0.7310585786300049) / 2
    windows = [read_pairs(path) for path in sorted(ledger.glob("windows/*/pairs.parquet"))]
    assert [len(pairs) for pairs in windows] == [8, 8]
    for pair in (pair for pairs in windows for pair in pairs):
        assert (pair.chosen_reward, pair.rejected_reward) == pytest.approx((win_rate, 1 - win_rate), rel=1e-12)
    lines = [json.loads(line) for line in (ledger / "metrics.jsonl").read_text().splitlines()]
    losses = [line["values"]["loss"] for line in lines if line["event"] == "step"]
    at_reference = (100 * (win_rate - 0.5)) ** 2
    assert losses[::2] == pytest.approx([at_reference] * 2, rel=1e-4)
    for number, pairs in enumerate(windows):
        loss = loss_under(ledger / "weights" / f"v{number + 1:06d}", pairs, aim=lambda rate: 100 * (rate - 0.5))
        assert loss < at_reference, "the window was learned from"


@pytest.mark.parametrize("num_samples", [1, 3])
def test_sppo_by_advantages_trains_on_every_answer(num_samples: int, attempts: Attempts, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    settings = {"advantage": "batch", "kappa": 0.0, "eta": 5.0}
    method = {"name": "sppo", "loss": "sppoAdvantage", "sppoAdvantage": settings, "refUpdateFreq": 2}
    rollout = {"samplesPerPrompt": num_samples, "maxTokens": 8}
    rule = {"kind": "regex", "pattern": "1"}

    assert attempts.run(ledger, method=method, rollout=rollout, preference={"rule": rule}) == 0, attempts.log(1).read_text()

    lines = [json.loads(line) for line in (ledger / "metrics.jsonl").read_text().splitlines()]
    losses = [line["values"]["loss"] for line in lines if line["event"] == "step"]
    for number, window in enumerate(sorted(ledger.glob("windows/*"))):
        pairs, groups = read_pairs(window / "pairs.parquet"), read_samples(window / "samples.parquet")
        answers = {(group.prompt.id, sample.tokens) for group in groups for sample in group.samples}
        sides = [(pair.prompt_id, tokens) for pair in pairs for tokens in (pair.chosen, pair.rejected) if tokens]
        assert len(sides) == len(groups) * num_samples
        assert set(sides) == answers
        # Of three scripted answers the first and the last have the reward 1; a single one has it too, and no advantage then.
        advantages = {pair.chosen_reward for pair in pairs} | {pair.rejected_reward for pair in pairs}
        assert sorted(advantages) == pytest.approx([0.0] if num_samples == 1 else [-2 / 3, 0.0, 1 / 3])
        mean_square = 0.0 if num_samples == 1 else 25 * (2 / 9 + 4 / 9) / 3
        assert losses[2 * number] == pytest.approx(mean_square, rel=1e-4, abs=1e-9)
        if num_samples > 1:
            loss = loss_under(ledger / "weights" / f"v{number + 1:06d}", pairs, aim=lambda advantage: 5 * advantage)
            assert loss < mean_square, "the window was learned from"


def loss_under(weights: Path, pairs: list[Pair], *, aim: Callable[[float], float]) -> float:
    """Mean square over the answers of pairs of how far their log-ratios are from where rewards want them, by transformers' own
    forward pass."""
    moved = iter(logprobs(weights, [pair for pair in pairs if pair.chosen and pair.rejected]))
    squares = [
        (next(moved) - reference - aim(reward)) ** 2
        for pair in pairs
        if pair.chosen and pair.rejected
        for reference, reward in (
            (pair.reference_chosen or 0.0, pair.chosen_reward),
            (pair.reference_rejected or 0.0, pair.rejected_reward),
        )
    ]
    return sum(squares) / len(squares)
