"""Windows that are compared with an older version, that replay earlier ones, and that have a schedule of their own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from integration.trainer.test_trainer_killed import end_state, killed_and_resumed
from spinrun_protocol.exit_codes import ExitCode
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


@pytest.mark.parametrize(
    ("method", "references"),
    [
        ({"refUpdateFreq": 0, "rolloutUpdateFreq": 1}, [0, 0, 0, 0]),
        ({"refUpdateFreq": 2, "rolloutUpdateFreq": 1}, [0, 0, 2, 2]),
        ({"refUpdateFreq": 1, "rolloutUpdateFreq": 1}, [0, 1, 2, 3]),
    ],
    ids=["for ever the first", "two windows share one", "each its own"],
)
def test_pairs_are_compared_with_the_version_that_is_the_reference(
    attempts: Attempts, tmp_path: Path, method: Json, references: list[int]
) -> None:
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


def test_the_reference_stays_in_the_ledger_while_windows_are_compared_with_it(attempts: Attempts, tmp_path: Path) -> None:
    method = {"refUpdateFreq": 3, "rolloutUpdateFreq": 1}
    sizes = {"windows": 5, "keepCheckpoints": 1}
    kept = {}
    for name, reference in {"three": method, "ever": method | {"refUpdateFreq": 0}, "own": {"refUpdateFreq": 1}}.items():
        ledger = completed(attempts, tmp_path / name, **spec(attempts, method=reference, **sizes))
        kept[name] = ledger.numbers("weights")
    # The last version is there as the newest one; version 3 is the reference of windows 3 to 5.
    assert kept == {"three": [3, 5], "ever": [0, 5], "own": [5]}


def test_a_reference_with_a_changed_byte_is_refused_by_its_name(attempts: Attempts, tmp_path: Path) -> None:
    method = {"refUpdateFreq": 0, "rolloutUpdateFreq": 2}
    undisturbed = completed(attempts, tmp_path / "undisturbed", **spec(attempts, windows=2, method=method))
    damaged = completed(attempts, tmp_path / "damaged", **spec(attempts, windows=1, method=method))
    file = damaged.layout.weights(0) / "model.safetensors"
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))

    assert attempts.run(damaged.root, attempt=2, **spec(attempts, windows=2, method=method)) == ExitCode.FAILED
    words = json.loads(attempts.last_words(2).read_text())
    assert f"{file} has different content than MANIFEST.json says" in words["message"]
    assert damaged.present("window") == [0], "nothing was compared with it"

    file.write_bytes(sound)
    assert attempts.run(damaged.root, attempt=3, **spec(attempts, windows=2, method=method)) == 0, attempts.log(3).read_text()
    assert end_state(damaged.root) == end_state(undisturbed.root)


def test_another_version_in_the_place_of_the_reference_is_refused(attempts: Attempts, tmp_path: Path) -> None:
    method = {"refUpdateFreq": 0, "rolloutUpdateFreq": 2}
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=1, method=method))
    weights, window = ledger.layout.weights(0), ledger.layout.window(0)
    # As if other weights stood there since window 0 was trained.
    manifest = json.loads((window / "MANIFEST.json").read_text())
    (window / "MANIFEST.json").write_text(json.dumps(manifest | {"reference": {"version": 0, "digest": "0" * 32}}))

    assert attempts.run(ledger.root, attempt=2, **spec(attempts, windows=2, method=method)) == ExitCode.FAILED
    assert f"{weights} holds other weights than those that window 0 began with" in attempts.log(2).read_text()


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


def test_a_run_killed_in_a_window_with_log_probs_of_the_rollouts_ends_in_the_same_state(
    attempts: Attempts, tmp_path: Path
) -> None:
    method = {"refUpdateFreq": 3, "referenceLogprobs": "rollouts", "maxMismatch": 1000.0}
    options = spec(attempts, windows=2, method=method)
    undisturbed = completed(attempts, tmp_path / "undisturbed", **options)
    changes = tmp_path / "changes"
    completed(attempts, tmp_path / "listed", list_to=changes, **options)
    for index, change in enumerate(changes.read_text().splitlines(), start=1):
        if "windows/000001" not in change:
            continue
        killed = tmp_path / f"killed-{index}"
        assert attempts.run(killed, kill_at=index, **options) == -9
        assert attempts.run(killed, attempt=2, **options) == 0, attempts.log(2).read_text()
        assert end_state(killed) == end_state(undisturbed.root), change


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


def test_a_changed_byte_in_a_window_that_is_replayed_is_refused_by_its_name(attempts: Attempts, tmp_path: Path) -> None:
    method = {"refUpdateFreq": 2, "replayWindows": 1}
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=1, method=method))
    file = ledger.layout.window(0) / "pairs.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])

    assert attempts.run(ledger.root, attempt=2, **spec(attempts, windows=2, method=method)) == ExitCode.FAILED
    assert f"{file} has different content than MANIFEST.json says" in json.loads(attempts.last_words(2).read_text())["message"]


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


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
def test_a_run_killed_in_such_a_window_ends_in_the_same_state(attempts: Attempts, tmp_path: Path) -> None:
    """Everything at once: window 2 has the reference of window 0, replays window 1, has a rate and a beta of its own, and is
    checkpointed after each of its steps."""

    def of(windows: int) -> Json:
        method = {"refUpdateFreq": 0, "rolloutUpdateFreq": 1, "replayWindows": 1, "betaByWindow": [0.1, 0.7]}
        course = {"learningRateByWindow": [1e-3, 2e-3], "schedule": "cosine", "warmupSteps": 1, "checkpointEverySteps": 1}
        return spec(attempts, windows=windows, method=method, keepCheckpoints=1, **course)

    undisturbed, prefix, listed = tmp_path / "undisturbed", tmp_path / "prefix", tmp_path / "changes"
    completed(attempts, undisturbed, **of(3))
    completed(attempts, prefix, **of(2))
    want = {name: digest for name, digest in end_state(undisturbed).items() if not name.startswith("checkpoint")}
    assert {"weights 0", "weights 3", "window 2"} <= set(want)
    unkilled = Path(shutil.copytree(prefix, tmp_path / "unkilled"))
    assert attempts.run(unkilled, attempt=2, list_to=listed, **of(3)) == 0, attempts.log(2).read_text()

    num_changes = len(listed.read_text().splitlines())
    assert num_changes > 20
    # Every third change; every single one of a plain window is test_trainer_killed's matter.
    for change in range(1, num_changes + 1, 3):
        got, where = killed_and_resumed(attempts, prefix, change, **of(3))
        assert {name: got.get(name) for name in want} == want, where
