"""A trainer of two pods, joined by gloo through the trainer's headless Service."""

import math
from pathlib import Path

import pytest

from e2e.runs import Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_two_pods_train_one_model(runs: Runs, tmp_path: Path) -> None:
    trainer = {"nodes": 2, "promptsPerStep": 16, "learningRate": 1e-4}
    runs.create(tiny_run("wide", trainer=trainer, duration={"windows": 3}))
    runs.until("two pods train", lambda: len(runs.pod_names("trainer")) == 2)

    runs.until_phase("wide", "Complete")

    ledger = runs.ledger("wide", tmp_path)
    ledger.assert_whole(windows=3)
    steps = {line.step: line.values for line in ledger.metrics if line.event == "step"}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for first in (1, 3, 5):
        # Both pods start a window with the weights that were published: at its own reference the loss is ln 2.
        assert steps[first]["loss"] == pytest.approx(math.log(2), abs=1e-4)
