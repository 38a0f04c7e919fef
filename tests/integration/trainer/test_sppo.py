"""SPPO through the real trainer."""

import json
from pathlib import Path

import pytest

from spinrun_worker.ledger import read_pairs
from trainer_process import Attempts


def test_sppo_trains_towards_win_rates(attempts: Attempts, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    method = {"name": "sppo", "loss": "sppo", "eta": 100.0, "refUpdateFreq": 2}

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
    assert all(loss < at_reference for loss in losses[1::2])
