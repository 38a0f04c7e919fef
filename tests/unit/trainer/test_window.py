"""The heart of the trainer: the order of a window, overlap, references, replay, and what follows a stop or a crash anywhere.

Rollouts answer by script, in this process; ledger, pairs, learner and windows are the real ones."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spinrun_api.spec import Method
from spinrun_protocol.ledger import Kind, Reference
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import ConfigurationError, NoPairsError, Preempted
from spinrun_worker.ledger import LedgerError, TornError, read_metrics, read_pairs, read_samples, verify_tree
from spinrun_worker.trainer.ranks.distributed import Distributed
from support.models import SMALLEST, random_llama
from support.scripted_agent import LOGPROB, random_digits
from support.scripted_training import Killed, ScriptedRun, UnansweredError, hurry, kill_before_each_commit

Json = dict[str, Any]

AHEAD: Json = {"refUpdateFreq": 2, "overlap": 1}
OLDER: Json = {"refUpdateFreq": 0, "rolloutUpdateFreq": 2}
REPLAY: Json = {"refUpdateFreq": 2, "replayWindows": 1}
ROLLOUTS: Json = {"refUpdateFreq": 2, "referenceLogprobs": "rollouts", "maxMismatch": 1000.0}
MIXED: Json = {"refUpdateFreq": 2, "rolloutUpdateFreq": 1, "referenceMixture": 0.25}
"""Two windows share a reference, which then moves by a quarter."""
GRPO: Json = {"refUpdateFreq": 2, "name": "grpo", "loss": "grpo", "klWeight": 0.1}
METHODS = {
    "in turn": {"refUpdateFreq": 2},
    "ahead": AHEAD,
    "rollouts' log-probs": ROLLOUTS,
    "base answers": {"refUpdateFreq": 2, "pairing": "bestVsBase"},
    "ahead, older reference, replay": OLDER | {"overlap": 1, "replayWindows": 1},
    "mixed reference, ahead, replay": MIXED | {"overlap": 1, "replayWindows": 1},
    "no reference, ahead, replay": OLDER | {"loss": "simpo", "overlap": 1, "replayWindows": 1},
    "grpo": GRPO,
    "grpo, ahead, older reference, replay": GRPO | OLDER | {"overlap": 1, "replayWindows": 1},
}
LN2 = 0.6931471805599453
UNEVALUATED: Json = {"prompts": {"source": "arithmetic"}}
TRAINER: Json = {"promptsPerStep": 2, "learningRate": 1e-2, "tokensPerMicroBatch": 128, "computeDtype": "float32"}

MakeRun = Callable[..., ScriptedRun]


@pytest.fixture
def make_run(tmp_path: Path, alone: Distributed, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Runs of two windows of two steps, each in a ledger of its own."""
    hurry(monkeypatch)
    numbers = itertools.count()

    def make(method: Json | None = None, *, windows: int = 2, name: str = "", **spec: Any) -> ScriptedRun:
        spec |= {"method": method or METHODS["in turn"], "duration": {"windows": windows}}
        return ScriptedRun(alone, tmp_path / (name or f"run-{next(numbers)}"), spec)

    return make


def values(run: ScriptedRun, event: str, name: str) -> list[float]:
    return [line.values[name] for line in read_metrics(run.ledger.layout.metrics) if line.event == event]


def without_activities(run: ScriptedRun) -> list[str]:
    return [event for event in run.events if " " in event]


# --- answers that were cut off --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truncated", "accuracy", "reward", "dropped", "counted"),
    [("zero", [0.0] * 2, 0.0, 0.0, True), ("drop", [0.0] * 2, 0.0, 4.0, True), ("score", [1.0] * 2, 0.5, 0.0, False)],
)
def test_answers_that_were_cut_off_count_the_same_in_windows_and_evaluations(
    make_run: MakeRun, truncated: str, accuracy: list[float], reward: float, dropped: float, counted: bool
) -> None:
    """The first answer to each prompt is right, and cut off; the second is wrong."""
    run = make_run(windows=1, preference={"rule": {"kind": "lastNumber", "truncated": truncated}})
    run.answer = first_is_cut_off
    run.attempt()
    assert values(run, "evaluation", "accuracy") == accuracy
    assert values(run, "window", "reward/mean") == [reward]
    assert values(run, "window", "dropped_samples") == [dropped]
    lines = read_metrics(run.ledger.layout.metrics)
    assert [line.values.get("truncated_samples") for line in lines if line.event == "window"] == [4.0 if counted else None]
    assert [line.values.get("truncated_samples") for line in lines if line.event == "evaluation"] == [
        2.0 if counted else None
    ] * 2


@pytest.mark.parametrize(("truncated", "pairs", "dropped"), [("score", 4.0, 0.0), ("penalise", 4.0, 0.0), ("drop", 0.0, 4.0)])
def test_answers_that_were_cut_off_are_paired_as_the_method_says(
    make_run: MakeRun, truncated: str, pairs: float, dropped: float
) -> None:
    """The first answer to each prompt is right, and cut off; the second is wrong."""
    method = METHODS["in turn"] | {"truncated": truncated} | ({"truncatedPenalty": 2} if truncated == "penalise" else {})
    run = make_run(method, windows=1)
    run.answer = first_is_cut_off
    run.attempt()
    assert values(run, "window", "pairs") == [pairs]
    assert values(run, "window", "dropped_samples") == [dropped]
    assert values(run, "window", "reward/mean") == [0.5], "what the preference gave"
    (line,) = [line for line in read_metrics(run.ledger.layout.metrics) if line.event == "window"]
    assert line.values.get("truncated_samples") == (None if truncated == "score" else 4.0)
    rewards = [(pair.chosen_reward, pair.rejected_reward) for pair in read_pairs(run.ledger.layout.window(0) / "pairs.parquet")]
    assert rewards == ([] if truncated == "drop" else [(1.0, 0.0) if truncated == "score" else (0.0, -1.0)] * 4)


def test_true_answers_that_were_cut_off_are_counted(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run({"name": "spin", "refUpdateFreq": 2}, windows=1, preference={"groundTruth": {"rule": {"kind": "lastNumber"}}})
    run.encode_answer = lambda answer: Sample(tokens=(11, 12), text=answer, finish_reason="length")
    run.attempt()
    assert values(run, "window", "truncated_truths") == [4.0]
    assert len([message for message in caplog.messages if "4 of 4 true answers are longer than" in message]) == 1


def first_is_cut_off(digest: str, prompt: tuple[int, ...], index: int) -> Sample:
    return random_digits(digest, prompt, index).model_copy(update={"finish_reason": "stop" if index else "length"})


# --- order ----------------------------------------------------------------------------------------------------------


def test_a_window_is_answered_scored_referred_committed_and_trained_in_this_order(make_run: MakeRun) -> None:
    assert make_run(windows=1).attempt().events == [
        "publish",
        "commit weights v000000",
        "activate",
        "activate 0",
        "ask 0 4x2",
        "ask 0 held-out",
        "generate",
        "evaluate",
        "commit evaluations 000000",
        "score",
        "reference",
        "train",
        "commit windows 000000",
        "train",
        "publish",
        "commit weights v000001",
        "activate",
        "activate 1",
        "ask 1 held-out",
        "checkpoint",
        "commit checkpoints step-000002",
        "evaluate",
        "commit evaluations 000001",
    ]


def test_the_rollouts_answer_the_next_window_while_this_one_trains(make_run: MakeRun) -> None:
    """Version 1 answers window 2's prompts only once window 1 is trained on; a trainer that waited would fail."""
    run = make_run(AHEAD, windows=3)

    def released(event: str) -> None:
        if event == "commit weights v000002" and run.rollouts:
            run.rollouts.release()

    run.on_event = released
    run.attempt(hold_back=[1])
    asked = [event for event in run.events if event.startswith("ask")]
    own, ahead = ["ask 0 4x2", "ask 0 held-out"], ["ask 0 4x2", "ask 1 4x2", "ask 1 held-out"]
    assert asked == [*own, *ahead, "ask 2 held-out", "ask 3 held-out"]


def test_in_turn_the_trainer_waits_for_the_answers(make_run: MakeRun) -> None:
    with pytest.raises(UnansweredError):
        make_run().attempt(hold_back=[0])


def test_ahead_a_window_is_answered_by_the_version_before_and_compared_with_its_own(make_run: MakeRun) -> None:
    run = make_run(AHEAD, windows=4).attempt()
    windows = [run.ledger.verify("window", number) for number in range(4)]
    assert [window.version for window in windows] == [0, 0, 1, 2]
    assert [window.reference.version for window in windows if window.reference] == [0, 1, 2, 3]


def test_the_checkpoint_is_written_while_the_rollouts_answer(make_run: MakeRun) -> None:
    events = make_run().attempt().events
    asked, saved = events.index("ask 1 4x2"), events.index("commit checkpoints step-000002")
    assert asked < saved < events.index("generate", asked)


@pytest.mark.parametrize(("every", "steps"), [(None, [2, 4]), (1, [1, 2, 3, 4]), (3, [3])])
def test_checkpoints_are_written_at_boundaries_or_every_so_many_steps(
    make_run: MakeRun, every: int | None, steps: list[int]
) -> None:
    run = make_run(trainer=TRAINER | ({"checkpointEverySteps": every} if every else {}))
    run.attempt()
    assert [event for event in run.events if "checkpoints" in event] == [f"commit checkpoints step-{step:06d}" for step in steps]


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [METHODS["in turn"], AHEAD], ids=["in turn", "ahead"])
@pytest.mark.parametrize(("every", "versions"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (5, [0, 3])])
def test_versions_whose_turn_it_is_are_evaluated_and_the_last_one(
    make_run: MakeRun, method: Json, every: int, versions: list[int]
) -> None:
    data = {"prompts": {"source": "arithmetic"}, "evaluation": {"source": "arithmetic", "everyWindows": every}}
    run = make_run(method, windows=3, data=data).attempt()
    assert run.ledger.numbers("evaluation") == versions
    assert [run.ledger.verify("evaluation", number).version for number in versions] == versions


def test_without_held_out_prompts_nothing_is_evaluated(make_run: MakeRun) -> None:
    run = make_run(data=UNEVALUATED).attempt()
    assert "evaluate" not in run.events
    assert run.ledger.numbers("evaluation") == []


def test_an_evaluation_that_the_ledger_holds_is_told_again_and_not_asked_for(make_run: MakeRun) -> None:
    run = make_run(windows=1).attempt()
    shutil.rmtree(run.root / "windows")
    shutil.rmtree(run.root / "checkpoints")
    run.attempt()
    assert [event for event in run.events if event.startswith("ask")] == ["ask 0 4x2"]
    assert run.board is not None
    assert set(run.board.accuracies) == {0, 1}


NUMBERS: Json = {"rule": {"kind": "lastNumber"}}


def says_one(digest: str, prompt: tuple[int, ...], index: int) -> Any:
    return random_digits(digest, prompt, index).model_copy(update={"text": "1"})


def test_a_true_answer_that_the_rule_cannot_read_is_named_and_left_out_of_the_accuracy(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(windows=1, preference=NUMBERS)
    run.answer, run.held_out = says_one, ("1", "one", "2", "none")
    run.attempt()
    assert values(run, "evaluation", "accuracy") == [0.5, 0.5]
    assert values(run, "evaluation", "num_prompts") == [2.0, 2.0]
    assert values(run, "evaluation", "unrated") == [2.0, 2.0]
    assert (
        "data.evaluation: 2 of 4 true answers cannot be compared with by preference.rule: "
        "row held-out-1: the true answer must hold a number, got 'one'; "
        "row held-out-3: the true answer must hold a number, got 'none'. "
        "They do not count in the accuracy"
    ) in caplog.messages
    run.attempt()
    assert run.board is not None
    assert run.board.accuracies == {0: 0.5, 1: 0.5}, "as it is told again by the next attempt"


def test_a_run_whose_held_out_answers_cannot_be_read_at_all_does_not_start(make_run: MakeRun) -> None:
    run = make_run(windows=1, preference=NUMBERS)
    run.held_out = ("one", "two")
    with pytest.raises(ConfigurationError, match=r"data\.evaluation: 2 of 2 true answers cannot be compared .* got 'one'"):
        run.attempt()


# --- references and replay ------------------------------------------------------------------------------------------


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
    make_run: MakeRun, method: Json, references: list[int]
) -> None:
    run = make_run(method, windows=4).attempt()
    windows = [run.ledger.verify("window", number) for number in range(4)]
    for number, version in enumerate(references):
        assert windows[number].reference == Reference(version=version, digest=windows[version].parent or "")
    is_own = [number == reference for number, reference in enumerate(references)]
    assert [loss == pytest.approx(LN2, abs=1e-6) for loss in values(run, "step", "loss")] == is_own


def test_the_first_step_gives_its_own_reference_and_no_pass_computes_it(make_run: MakeRun) -> None:
    run = make_run({"refUpdateFreq": 1}, windows=1).attempt()
    (pair, *_) = read_pairs(run.ledger.layout.window(0) / "pairs.parquet")
    assert pair.reference_chosen is not None
    assert values(run, "step", "loss") == pytest.approx([LN2], abs=1e-6)
    assert run.events.index("train") < run.events.index("commit windows 000000")


@pytest.mark.parametrize(
    "method",
    [METHODS["in turn"], AHEAD, OLDER, REPLAY, ROLLOUTS, {"refUpdateFreq": 0, "rolloutUpdateFreq": 2, "overlap": 1}],
    ids=["in turn", "ahead", "older reference", "replay", "rollouts' log-probs", "ahead of an older reference"],
)
@pytest.mark.parametrize("loss", ["simpo", "orpo", "cringe"])
def test_a_loss_without_a_reference_has_no_pass_for_one_and_keeps_no_older_version(
    make_run: MakeRun, method: Json, loss: str
) -> None:
    run = make_run(method | {"loss": loss}, windows=3, data=UNEVALUATED, trainer=TRAINER | {"keepCheckpoints": 1}).attempt()
    assert "reference" not in run.events
    for number in range(3):
        assert run.ledger.manifest("window", number).reference is None
        for file in run.ledger.layout.window(number).glob("*.parquet"):
            if file.name != "samples.parquet":
                assert {(pair.reference_chosen, pair.reference_rejected) for pair in read_pairs(file)} == {(None, None)}
    last_sampler = 2 if method.get("overlap") else 3
    assert run.ledger.numbers("weights") == [*range(last_sampler, 4)]
    names = {name for line in read_metrics(run.ledger.layout.metrics) for name in line.values}
    assert {name for name in names if "ref" in name or "mismatch" in name} == set()


def test_with_kl_weight_such_a_loss_has_its_reference(make_run: MakeRun) -> None:
    run = make_run(METHODS["in turn"] | {"loss": "simpo", "klWeight": 0.1}, windows=1).attempt()
    assert run.events.count("reference") == 1
    assert "ref_logps/chosen" in read_metrics(run.ledger.layout.metrics)[1].values


def test_a_run_whose_windows_have_log_probs_that_no_loss_reads_continues(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older SpinRun began them, with an older reference, and replayed."""
    method = OLDER | {"loss": "simpo", "replayWindows": 1, "overlap": 1}
    want = make_run(method, windows=3, data=UNEVALUATED).attempt().end_state()
    run = make_run(method, windows=2, data=UNEVALUATED, trainer=TRAINER | {"checkpointEverySteps": 1})

    def dies(event: str) -> None:
        if event == "commit checkpoints step-000004":
            run.on_event = lambda _: None
            raise Killed(event)

    run.on_event = dies
    with monkeypatch.context() as patched:
        patched.setattr(Method, "uses_reference", True)
        assert interrupted(run, Killed, LedgerError)
    assert run.ledger.manifest("window", 1).reference is not None
    run.spec |= {"duration": {"windows": 3}, "trainer": TRAINER}
    got = run.attempt().end_state()
    assert {name: digest for name, digest in got.items() if "weights" in name} == {
        name: digest for name, digest in want.items() if "weights" in name
    }


def test_with_an_older_reference_a_window_is_committed_before_its_first_step(make_run: MakeRun) -> None:
    events = make_run(OLDER).attempt().events
    assert events.index("commit windows 000001") < events.index("train", events.index("activate 1"))


@pytest.mark.parametrize(("max_mismatch", "passes"), [(1000.0, 2), (0.001, 4)], ids=["near enough", "too far"])
def test_log_probs_of_the_rollouts_are_taken_where_they_are_near_the_trainers(
    make_run: MakeRun, max_mismatch: float, passes: int
) -> None:
    run = make_run(ROLLOUTS | {"maxMismatch": max_mismatch}).attempt()
    mismatches = [line.values.get("logps/mismatch") for line in read_metrics(run.ledger.layout.metrics) if line.event == "step"]
    assert [mismatch is not None for mismatch in mismatches] == [True, False, True, False], "once a window"
    # One pass a window is for nothing: it is entered without a step. The second is the trainer's own.
    assert run.events.count("reference") == passes - 2


def tensors_of(run: ScriptedRun, kind: Kind, number: int) -> dict[str, Tensor]:
    return load_file(run.ledger.layout.path(kind, number) / "model.safetensors")


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_mixed_reference_moves_by_its_share_towards_the_policy_each_time_that_it_changes(
    make_run: MakeRun, overlap: int
) -> None:
    kept = TRAINER | {"keepCheckpoints": 9}
    run = make_run(MIXED | {"overlap": overlap}, windows=6, data=UNEVALUATED, trainer=kept).attempt()
    manifests = [run.ledger.manifest("window", number) for number in range(6)]
    references = [manifest.reference for manifest in manifests]
    assert [(each.kind, each.version) for each in references if each] == [
        *[(None, 0)] * 2,
        *[("reference", 2)] * 2,
        *[("reference", 4)] * 2,
    ]
    before = tensors_of(run, "weights", 0)
    for number in (2, 4):
        mixture = run.ledger.verify("reference", number)
        assert mixture.parent == run.ledger.manifest("weights", number).digest
        assert mixture.reference == references[number - 1]
        policy, mixed = tensors_of(run, "weights", number), tensors_of(run, "reference", number)
        for name, tensor in before.items():
            # As TRL's SyncRefModelCallback does it, to the last bit.
            assert torch.equal(mixed[name], tensor.mul(1 - 0.25).add(policy[name], alpha=0.25))
        before = mixed
    # The first step of window 4 is at version 4, not at its reference.
    step = next(line for line in read_metrics(run.ledger.layout.metrics) if line.event == "step" and line.window == 4)
    assert step.values["loss"] != pytest.approx(LN2, abs=1e-6)
    assert step.values["logps/chosen"] != step.values["ref_logps/chosen"]
    assert {finding.state for finding in verify_tree(run.root)} == {"committed"}


def test_a_mixed_reference_is_what_its_pairs_are_compared_with(make_run: MakeRun) -> None:
    """The log-probs in the ledger are those of the mixture's own weights, by the model's own forward pass."""
    run = make_run(MIXED, windows=3, data=UNEVALUATED).attempt()
    model = random_llama(**SMALLEST)
    model.load_state_dict(tensors_of(run, "reference", 2), strict=False)
    for pair in read_pairs(run.ledger.layout.window(2) / "pairs.parquet"):
        logits = model(input_ids=torch.tensor([[*pair.prompt, *pair.chosen]])).logits[0, len(pair.prompt) - 1 : -1]
        want = logits.log_softmax(-1)[torch.arange(len(pair.chosen)), list(pair.chosen)].sum().item()
        assert pair.reference_chosen == pytest.approx(want, rel=1e-5)


def test_mixed_references_that_no_window_needs_are_deleted(make_run: MakeRun) -> None:
    method = MIXED | {"refUpdateFreq": 1}
    run = make_run(method, windows=6, data=UNEVALUATED, trainer=TRAINER | {"keepCheckpoints": 1}).attempt()
    # A longer run would mix that of window 6 from the one of window 5.
    assert run.ledger.numbers("reference") == [5]
    assert run.ledger.numbers("weights") == [6]
    run.spec["duration"] = {"windows": 7}
    longer = make_run(method, windows=7, data=UNEVALUATED, trainer=TRAINER | {"keepCheckpoints": 1}).attempt()
    assert run.attempt().end_state() == longer.end_state()


def test_a_mixed_reference_with_a_changed_byte_is_refused_by_its_name(make_run: MakeRun) -> None:
    run = make_run(MIXED, windows=3, data=UNEVALUATED).attempt()
    file = run.ledger.layout.path("reference", 2) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    run.spec["duration"] = {"windows": 4}
    with pytest.raises(TornError, match=r"references/v000002/model\.safetensors has different content"):
        run.attempt()


def test_a_mixed_reference_of_other_weights_is_made_again(make_run: MakeRun) -> None:
    """As after an attempt that went back to before it, and trained otherwise."""
    want = make_run(MIXED, windows=4, data=UNEVALUATED).attempt().end_state()
    run = make_run(MIXED, windows=2, data=UNEVALUATED).attempt()
    other = make_run(MIXED | {"beta": 0.7}, windows=3, data=UNEVALUATED, name="other").attempt()
    shutil.copytree(other.ledger.layout.path("reference", 2), run.ledger.layout.path("reference", 2))
    (found,) = [finding for finding in verify_tree(run.root) if finding.kind == "reference"]
    assert (found.state, "was mixed from other weights than" in found.detail) == ("superseded", True)
    run.spec["duration"] = {"windows": 4}
    assert run.attempt().end_state() == want


def test_a_window_trains_on_the_pairs_of_earlier_ones_under_its_own_reference(make_run: MakeRun) -> None:
    run = make_run(REPLAY, windows=3).attempt()
    assert values(run, "step", "pairs") == [2.0] * 10
    own = read_pairs(run.ledger.layout.window(0) / "pairs.parquet")
    replayed = read_pairs(run.ledger.layout.window(1) / "replayed-000000.parquet")
    assert [(pair.prompt, pair.chosen) for pair in replayed] == [(pair.prompt, pair.chosen) for pair in own]
    assert [pair.reference_chosen for pair in replayed] != [pair.reference_chosen for pair in own]
    losses = values(run, "step", "loss")
    assert [losses[index] for index in (0, 2, 6)] == pytest.approx([LN2] * 3, abs=1e-6)


def test_a_changed_byte_in_a_window_that_is_replayed_is_refused_by_its_name(make_run: MakeRun) -> None:
    run = make_run(REPLAY, windows=1).attempt()
    file = run.ledger.layout.window(0) / "pairs.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    run.spec["duration"] = {"windows": 2}
    with pytest.raises(TornError, match=r"windows/000000/pairs\.parquet"):
        run.attempt()


def test_a_reference_with_a_changed_byte_is_refused_by_its_name(make_run: MakeRun) -> None:
    want = make_run(OLDER).attempt().end_state()
    run = make_run(OLDER, windows=1).attempt()
    file = run.ledger.layout.weights(0) / "model.safetensors"
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    run.spec["duration"] = {"windows": 2}
    with pytest.raises(TornError, match=r"weights/v000000/model\.safetensors has different content"):
        run.attempt()
    assert run.ledger.present("window") == [0], "nothing was compared with it"
    file.write_bytes(sound)
    assert run.attempt().end_state() == want


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ({"refUpdateFreq": 3, "rolloutUpdateFreq": 1}, [3, 5]),
        ({"refUpdateFreq": 0, "rolloutUpdateFreq": 1}, [0, 5]),
        ({"refUpdateFreq": 1}, [5]),
    ],
    ids=["three windows", "for ever the first", "its own"],
)
def test_the_reference_stays_in_the_ledger_while_windows_are_compared_with_it(
    make_run: MakeRun, method: Json, kept: list[int]
) -> None:
    run = make_run(method, windows=5, trainer=TRAINER | {"keepCheckpoints": 1}, data=UNEVALUATED).attempt()
    assert run.ledger.numbers("weights") == kept


def test_another_version_in_the_place_of_the_reference_is_refused(make_run: MakeRun) -> None:
    run = make_run(OLDER, windows=1).attempt()
    manifest = run.ledger.layout.window(0) / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"reference": {"version": 0, "digest": "0" * 32}}))
    run.spec["duration"] = {"windows": 2}
    with pytest.raises(TornError, match="holds other weights than those that window 0 began with"):
        run.attempt()


def test_base_answers_are_sampled_before_window_0_and_paired_with(make_run: MakeRun) -> None:
    method = {"refUpdateFreq": 2, "pairing": "bestVsBase"}
    run = make_run(method, rollout={"samplesPerPrompt": 2, "maxTokens": 8}).attempt()
    assert without_activities(run)[:3] == ["commit weights v000000", "activate 0", "ask 0 4x1"]
    assert run.ledger.numbers("base") == [0, 1]


# --- log-probs by token ---------------------------------------------------------------------------------------------


def steps_of(run: ScriptedRun, window: int = 0) -> list[Any]:
    return read_pairs(run.ledger.layout.window(window) / "pairs.parquet")


def test_grpo_keeps_the_log_probs_of_the_policy_at_the_windows_beginning(make_run: MakeRun) -> None:
    run = make_run(GRPO).attempt()
    for window in (0, 1):
        for pair in steps_of(run, window):
            assert pair.policy_by_token is not None
            assert [len(pair.policy_by_token.chosen), len(pair.policy_by_token.rejected)] == [
                len(pair.chosen),
                len(pair.rejected),
            ]
            assert pair.sampled_by_token is not None
            assert {*pair.sampled_by_token.chosen, *pair.sampled_by_token.rejected} == {LOGPROB}
            assert pair.reference_by_token is None, "the reference is the policy at the window's beginning"
            assert pair.reference_chosen is None
    assert values(run, "step", "kl")[::2] == [0.0, 0.0], "the first steps of both windows"
    assert min(values(run, "step", "kl")[1::2]) > 0


def test_grpo_has_a_pass_by_an_older_reference_only_where_its_divergence_has_a_weight(make_run: MakeRun) -> None:
    weighted = make_run(GRPO | OLDER).attempt()
    assert all(pair.reference_by_token is not None for pair in steps_of(weighted, 1))
    assert min(values(weighted, "step", "kl")[2:]) > 0, "window 1 begins away from version 0"
    unweighted = make_run(GRPO | OLDER | {"klWeight": 0.0}).attempt()
    assert all(pair.reference_by_token is None and pair.policy_by_token is not None for pair in steps_of(unweighted, 1))


def test_grpo_takes_every_answer_of_a_prompt_whose_rewards_differ(make_run: MakeRun) -> None:
    run = make_run(GRPO | {"refUpdateFreq": 1}, windows=1).attempt()
    (pairs,), (ties,) = values(run, "window", "pairs"), values(run, "window", "ties")
    assert pairs + ties == 2, "two prompts of two answers each"
    assert sum(pair.chosen_reward + pair.rejected_reward for pair in steps_of(run)) == pytest.approx(0.0)


def test_log_probs_by_token_show_how_far_rollouts_and_trainer_differ(make_run: MakeRun) -> None:
    rollout = {"samplesPerPrompt": 2, "maxTokens": 8, "logprobs": "tokens"}
    run, silent = make_run(rollout=rollout).attempt(), make_run().attempt()
    assert values(run, "window", "entropy") == [-LOGPROB] * 2
    lines = [line for line in read_metrics(run.ledger.layout.metrics) if line.event == "step"]
    assert ["logps/mismatch_p95" in line.values for line in lines] == [True, False] * 2
    first = lines[0].values
    assert 0 < first["logps/mismatch_p50"] <= first["logps/mismatch"] * 2
    assert first["logps/mismatch_p50"] <= first["logps/mismatch_p95"] <= first["logps/mismatch_max"]
    pairs = [replace(pair, sampled_by_token=None) for pair in steps_of(run)]
    assert pairs == steps_of(silent), "the pairs and their reference are those of a run that asks for none"
    assert [
        sample.token_logprobs
        for group in read_samples(run.ledger.layout.window(0) / "samples.parquet")
        for sample in group.samples
    ]


def test_answers_of_an_agent_that_sends_no_log_probs_are_trained_on_uncorrected(make_run: MakeRun) -> None:
    run = make_run(GRPO)
    run.sends_token_logprobs = False
    run.attempt()
    assert set(values(run, "step", "sampling/importance_sampling_ratio/max")) == {1.0}
    assert all("entropy" not in line.values for line in read_metrics(run.ledger.layout.metrics))


# --- windows without pairs ------------------------------------------------------------------------------------------


def never_right(digest: str, prompt: tuple[int, ...], index: int) -> Any:
    return random_digits(digest, prompt, index).model_copy(update={"text": "2"})


def test_a_window_without_pairs_counts_its_steps_and_changes_no_weight(make_run: MakeRun) -> None:
    run = make_run(windows=2)
    run.answer = never_right
    run.attempt()
    assert values(run, "window", "pairs") == [0.0, 0.0]
    assert "train" not in run.events
    assert len({run.ledger.verify("weights", version).files for version in run.ledger.numbers("weights")}) == 1


def test_three_windows_without_pairs_end_the_run_by_name(make_run: MakeRun) -> None:
    run = make_run(windows=5)
    run.answer = never_right
    with pytest.raises(NoPairsError, match="windows 0 to 2 gave no pair"):
        run.attempt()
    assert run.events[-1] == "cancel"


# --- stopped and killed ---------------------------------------------------------------------------------------------


def interrupted(run: ScriptedRun, *errors: type[BaseException], **options: Any) -> bool:
    """Whether an attempt ends with one of these errors; else it has come to its end."""
    try:
        run.attempt(**options)
    except errors:
        return True
    return False


# With log-probs of the rollouts a window that is stopped in its first step has the trainer's: the same run, not the same bytes.
@pytest.mark.parametrize(
    "name",
    ["in turn", "ahead, older reference, replay", "no reference, ahead, replay", "mixed reference, ahead, replay", "grpo"],
)
def test_a_run_stopped_at_any_point_continues_as_if_it_had_not(make_run: MakeRun, name: str) -> None:
    method, windows = METHODS[name], 3 if "mixed" in name else 2
    want = make_run(method, windows=windows, data=UNEVALUATED).attempt().end_state()
    stopped = 0
    for stop_at in itertools.count(1):
        run = make_run(method, windows=windows, data=UNEVALUATED)
        if not interrupted(run, Preempted, stop_at=stop_at):
            break
        assert run.attempt().end_state() == want, f"stopped at look {stop_at}"
        stopped += 1
    assert stopped > 5, "there are as many points to stop at as steps and requests"


@pytest.mark.parametrize(
    "name",
    [
        "rollouts' log-probs",
        "base answers",
        "ahead, older reference, replay",
        "no reference, ahead, replay",
        "grpo, ahead, older reference, replay",
    ],
)
def test_a_run_killed_before_any_commit_ends_in_the_same_state(make_run: MakeRun, name: str) -> None:
    assert kill_before_each_commit(lambda: make_run(METHODS[name], data=UNEVALUATED)) >= 5, "three versions, two windows"


@pytest.mark.parametrize(("method", "windows"), [({"refUpdateFreq": 2}, 2), (MIXED, 3)], ids=["plain", "mixed reference"])
def test_a_run_killed_at_any_file_of_a_window_ends_in_the_same_state(make_run: MakeRun, method: Json, windows: int) -> None:
    want = make_run(method, windows=windows).attempt().end_state()
    shorter = make_run(method, windows=windows - 1, name="prefix").attempt()
    killed = 0
    for change in itertools.count(1, 2):
        run = make_run(method, windows=windows)
        shutil.copytree(shorter.root, run.root)
        run.attempts = 1
        if not interrupted(run, Killed, LedgerError, kill_at=change):  # torch makes any end of a checkpoint an error of its own
            assert run.end_state() == want, "a longer run continues exactly where a shorter one ended"
            break
        assert run.attempt().end_state() == want, f"killed before change {change}"
        killed += 1
    assert killed > 10, "every second file: two in a row are of one directory"


def test_after_a_stop_nobody_is_asked_any_more(make_run: MakeRun) -> None:
    run = make_run(AHEAD)
    with pytest.raises(Preempted):
        run.attempt(stop_at=6)
    assert "cancel" in run.events
    assert not [event for event in run.events[run.events.index("cancel") :] if event.startswith("ask")]


def test_a_window_that_has_begun_is_not_sampled_again_when_it_is_damaged(make_run: MakeRun) -> None:
    """A checkpoint within a window whose file has changed: the run goes back to the checkpoint before it."""
    want = make_run(trainer=TRAINER | {"checkpointEverySteps": 1, "keepCheckpoints": 9}).attempt().end_state()
    run = make_run(trainer=TRAINER | {"checkpointEverySteps": 1, "keepCheckpoints": 9})

    def dies(event: str) -> None:
        if event == "commit checkpoints step-000003":
            run.on_event = lambda _: None
            raise KeyboardInterrupt

    run.on_event = dies
    with pytest.raises(KeyboardInterrupt):
        run.attempt()
    file = run.ledger.layout.window(1) / "pairs.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run.attempt().end_state() == want
    assert "ask 1 4x2" in run.events


def test_weights_that_a_window_is_still_to_be_sampled_from_are_made_again(make_run: MakeRun) -> None:
    settings = {"trainer": TRAINER | {"keepCheckpoints": 2}}
    want = make_run(AHEAD, windows=4, **settings).attempt().end_state()
    run = make_run(AHEAD, windows=3, **settings).attempt()
    (run.ledger.layout.weights(2) / "MANIFEST.json").unlink()
    run.spec["duration"] = {"windows": 4}
    assert run.attempt().end_state() == want
