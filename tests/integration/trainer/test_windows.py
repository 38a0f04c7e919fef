"""The numbers of windows that are compared with an older version, replay earlier ones, or have a schedule of their own.

What follows a stop or a crash in them is the matter of tests/unit/trainer/test_window.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from integration.trainer.test_trainer_killed import end_state
from spinrun_protocol.ledger import MetricsLine, Reference
from spinrun_worker.ledger import Ledger, read_metrics, read_pairs
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.policy import Policy, plain_logprob
from spinrun_worker.trainer.schedule import divide
from support.scripted_agent import LOGPROB
from support.trainer_process import UID, Attempts

Json = dict[str, Any]

LN2 = 0.6931471805599453
ALONE: Json = {"data": {"prompts": {"source": "arithmetic", "config": "addition-5"}, "maxPromptTokens": 128}}
"""Without evaluations, which would only take time."""


def spec(attempts: Attempts, *, windows: int, method: Json, **trainer: Any) -> Json:
    """A run without evaluations, with the trainer's usual settings but for those given."""
    usual = attempts.document["spec"]["trainer"]
    kept = {name: value for name, value in usual.items() if not (name == "learningRate" and "learningRateByWindow" in trainer)}
    return ALONE | {"method": method, "duration": {"windows": windows}, "trainer": kept | trainer}


def completed(attempts: Attempts, ledger: Path, **spec: Any) -> Ledger:
    assert attempts.run(ledger, **spec) == 0, attempts.log(1).read_text()
    return Ledger(ledger, UID)


def steps(ledger: Ledger) -> list[MetricsLine]:
    return [line for line in read_metrics(ledger.layout.metrics) if line.event == "step"]


def logprobs(weights: Path, pairs: Sequence[Pair]) -> list[float]:
    """Summed log-probs of chosen and rejected answers by transformers' own forward pass."""
    torch.set_num_threads(1)
    policy = Policy(AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32))
    with torch.no_grad():
        return [
            plain_logprob(policy.model, pair.prompt, answer).item() for pair in pairs for answer in (pair.chosen, pair.rejected)
        ]


def recorded(pairs: Sequence[Pair]) -> list[float]:
    return [value for pair in pairs for value in (pair.reference_chosen, pair.reference_rejected) if value is not None]


# --- references -----------------------------------------------------------------------------------------------------


def test_pairs_are_compared_with_the_version_that_is_the_reference(attempts: Attempts, tmp_path: Path) -> None:
    method, references = {"refUpdateFreq": 2, "rolloutUpdateFreq": 1}, [0, 0, 2, 2]
    # Nobody deletes a version that a kept checkpoint names; version 0, which none names, is the source model.
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=4, method=method, keepCheckpoints=9))

    windows = [ledger.verify("window", number) for number in range(4)]
    folders = [Path(attempts.document["spec"]["model"]["source"]), *map(ledger.layout.weights, range(1, 4))]
    assert [window.parent for window in windows[1:]] == [ledger.verify("weights", number).digest for number in range(1, 4)]
    for number, reference in enumerate(references):
        assert windows[number].reference == Reference(version=reference, digest=windows[reference].parent or "")
        pairs = read_pairs(ledger.layout.window(number) / "pairs.parquet")
        assert recorded(pairs) == pytest.approx(logprobs(folders[reference], pairs), abs=2e-4)
    losses = [line.values["loss"] for line in steps(ledger)]
    assert [loss == pytest.approx(LN2, abs=1e-6) for loss in losses] == [
        number == reference for number, reference in enumerate(references)
    ]


# --- log-probs of the rollouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_mismatch", [1000.0, 0.01], ids=["near enough", "too far"])
def test_log_probs_of_the_rollouts_stand_for_the_reference_where_they_are_near_the_trainers(
    attempts: Attempts, tmp_path: Path, max_mismatch: float
) -> None:
    method = {"refUpdateFreq": 3, "referenceLogprobs": "rollouts", "maxMismatch": max_mismatch}
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=2, method=method, keepCheckpoints=9))

    mismatches = [line.values["logps/mismatch"] for line in steps(ledger) if "logps/mismatch" in line.values]
    assert len(mismatches) == 2, "once a window"
    for number, mismatch in enumerate(mismatches):
        pairs = read_pairs(ledger.layout.window(number) / "pairs.parquet")
        source = ledger.layout.weights(number) if number else Path(attempts.document["spec"]["model"]["source"])
        own = logprobs(source, pairs)
        rollouts = [LOGPROB * len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
        first = 2 * len(divide(pairs, 3)[0])
        lengths = sum(len(pair.chosen) + len(pair.rejected) for pair in divide(pairs, 3)[0])
        apart = sum(abs(one - other) for one, other in zip(own[:first], rollouts[:first], strict=True)) / lengths
        assert mismatch == pytest.approx(apart, abs=1e-4)
        # The first step's are the trainer's in any case.
        want = own if mismatch > max_mismatch else own[:first] + rollouts[first:]
        assert recorded(pairs) == pytest.approx(want, abs=2e-4)
    assert ("more than spec.method.maxMismatch" in attempts.log(1).read_text()) == (max_mismatch < 1)
    # Whoever said the log-probs: a window starts at its own reference.
    assert [steps(ledger)[number].values["loss"] for number in (0, 3)] == pytest.approx([LN2, LN2], abs=1e-6)


# --- replay ---------------------------------------------------------------------------------------------------------


def test_a_window_trains_on_the_pairs_of_earlier_ones_under_its_own_reference(attempts: Attempts, tmp_path: Path) -> None:
    method = {"refUpdateFreq": 2, "replayWindows": 1}
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=3, method=method, keepCheckpoints=9))

    lines = steps(ledger)
    assert [line.window for line in lines] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    # Four prompts a step make four pairs: with as many replayed, a window has twice the steps, not steps of twice the size.
    assert [line.values["pairs"] for line in lines] == [4.0] * 10
    windows = {number: ledger.layout.window(number) for number in range(3)}
    own = {number: read_pairs(folder / "pairs.parquet") for number, folder in windows.items()}
    assert [len(pairs) for pairs in own.values()] == [8, 8, 8]
    assert sorted(path.name for path in windows[0].glob("*.parquet")) == ["pairs.parquet", "samples.parquet"]
    for number in (1, 2):
        replayed = read_pairs(windows[number] / f"replayed-{number - 1:06d}.parquet")
        assert [(pair.prompt, pair.chosen, pair.rejected) for pair in replayed] == [
            (pair.prompt, pair.chosen, pair.rejected) for pair in own[number - 1]
        ]
        assert recorded(replayed) == pytest.approx(logprobs(ledger.layout.weights(number), replayed), abs=2e-4)
        assert recorded(replayed) != pytest.approx(recorded(own[number - 1]), abs=2e-4)
    assert [lines[index].values["loss"] for index in (0, 2, 6)] == pytest.approx([LN2] * 3, abs=1e-6)
    counts = [line.values.get("replayed_pairs") for line in read_metrics(ledger.layout.metrics) if line.event == "window"]
    assert counts == [None, 8.0, 8.0]


# --- schedules ------------------------------------------------------------------------------------------------------


def test_windows_have_learning_rates_and_betas_of_their_own(attempts: Attempts, tmp_path: Path) -> None:
    rates, betas = [1e-3, 4e-4], [0.1, 0.1, 5.0]
    method = {"refUpdateFreq": 2, "betaByWindow": betas}
    course = {"learningRateByWindow": rates, "schedule": "linear", "warmupSteps": 1}
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=4, method=method, **course))

    lines = steps(ledger)
    assert [line.values["lr"] for line in lines] == pytest.approx([5e-4, 1e-3, *[2e-4, 4e-4] * 3])
    assert [line.values["beta"] for line in lines] == [0.1, 0.1, 0.1, 0.1, 5.0, 5.0, 5.0, 5.0]
    # Logged rewards are beta times the log-ratios.
    for line in lines:
        gap = line.values["logps/chosen"] - line.values["ref_logps/chosen"]
        assert line.values["rewards/chosen"] == pytest.approx(line.values["beta"] * gap, rel=1e-6, abs=1e-9)


def test_one_value_by_window_trains_as_the_value_for_all(attempts: Attempts, tmp_path: Path) -> None:
    for_all = completed(attempts, tmp_path / "all", **spec(attempts, windows=2, method={"refUpdateFreq": 2, "beta": 0.5}))
    method = {"refUpdateFreq": 2, "betaByWindow": [0.5]}
    by_window = completed(attempts, tmp_path / "each", **spec(attempts, windows=2, method=method, learningRateByWindow=[1e-3]))

    assert end_state(by_window.root) == end_state(for_all.root)
    assert "beta" not in steps(for_all)[0].values
