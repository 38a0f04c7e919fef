import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import SGD, Optimizer
from transformers import AutoModelForCausalLM

from spinrun_api.spec import Method, Model, Sigmoid, Trainer
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.learner import Learner, NonFiniteError
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import Policy, load_policy, shard_policy
from support.models import random_pairs

NO_CLIPPING = 1e9


class OneRank(DeviceMesh):
    """A mesh of this process alone, without a process group."""

    def __init__(self) -> None:
        self._device_type = "cpu"

    def size(self, mesh_dim: int | None = None) -> int:  # noqa: ARG002
        return 1


def fp64_policy(llama: Path) -> Policy:
    return load_policy(Model(source=str(llama)), master_dtype=torch.float64)


def learner(policy: Policy, optimizer: Optimizer | None = None, *, method: Method | None = None, **trainer: float) -> Learner:
    settings = Trainer.model_validate({"maxGradNorm": NO_CLIPPING, **trainer})
    return Learner(policy, optimizer or SGD(policy.parameters(), lr=1.0), method=method or Method(), trainer=settings)


def referred(learner: Learner, pairs: Sequence[Pair], *, shift: float = 0.0) -> list[Pair]:
    """Pairs with their reference; a shift pretends that the policy has since moved away from it."""
    return [
        replace(pair, reference_chosen=chosen - shift, reference_rejected=rejected + shift)
        for pair, (chosen, rejected) in zip(pairs, learner.reference_logprobs(pairs), strict=True)
    ]


def gradient(policy: Policy, pairs: Sequence[Pair], **trainer: Any) -> tuple[float, Tensor]:
    """(loss, gradient) of a step: plain descent with learning rate 1 subtracts the gradient."""
    start = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
    result = learner(policy, **trainer).step(pairs, learning_rate=1.0)
    end = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    assert result is not None
    return result.figures["loss"], start - end


def test_the_gradient_is_that_of_the_published_loss_on_separate_sequences(llama: Path):
    pairs = referred(learner(fp64_policy(llama)), random_pairs(5), shift=2.0)
    got_loss, got_gradient = gradient(fp64_policy(llama), pairs, tokensPerMicroBatch=64)

    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64, attn_implementation="eager")

    def logprob(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
        logits = plain(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(completion)), list(completion)].sum()

    losses: list[Tensor] = []
    for pair in pairs:
        assert pair.reference_chosen is not None
        assert pair.reference_rejected is not None
        log_ratio_chosen = logprob(pair.prompt, pair.chosen) - pair.reference_chosen
        log_ratio_rejected = logprob(pair.prompt, pair.rejected) - pair.reference_rejected
        losses.append(-torch.nn.functional.logsigmoid(0.1 * (log_ratio_chosen - log_ratio_rejected)))
    want_loss = torch.stack(losses).mean()
    want_loss.backward()
    want_gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])

    assert got_loss == pytest.approx(want_loss.item(), rel=1e-5)
    torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6 * want_gradient.abs().max().item())


@pytest.mark.parametrize("tokens_per_micro_batch", [16, 40, 100])
def test_packing_changes_neither_loss_nor_gradient(tokens_per_micro_batch: int, llama: Path):
    pairs = referred(learner(fp64_policy(llama)), random_pairs(7), shift=1.0)

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, tokensPerMicroBatch=10_000_000)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, tokensPerMicroBatch=tokens_per_micro_batch)

    # Rotary angles are fp32 in transformers, so that not all of fp64's digits are the same.
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(gradient_in_parts, whole_gradient, rtol=1e-4, atol=1e-6 * whole_gradient.abs().max().item())


@pytest.mark.parametrize("tokens_per_micro_batch", [64, 100_000])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_model_that_cannot_be_packed_takes_the_same_step(
    tokens_per_micro_batch: int, activation_checkpointing: bool, llama: Path
):
    pairs = referred(learner(fp64_policy(llama)), random_pairs(6), shift=2.0)
    want_loss, want_gradient = gradient(fp64_policy(llama), pairs, tokensPerMicroBatch=64)
    padded = fp64_policy(llama)
    padded.packs = False
    padded.model.set_attn_implementation("sdpa")
    shard_policy(padded, mesh=OneRank(), compute_dtype=torch.float64, activation_checkpointing=activation_checkpointing)

    loss, got_gradient = gradient(padded, pairs, tokensPerMicroBatch=tokens_per_micro_batch)

    assert loss == pytest.approx(want_loss, rel=1e-6)
    torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_pairs", [1, 3, 16])
def test_the_first_step_after_the_reference_pass_has_loss_ln_2_to_the_last_bit(num_pairs: int, llama: Path):
    trained = learner(load_policy(Model(source=str(llama))), tokensPerMicroBatch=64)
    pairs = referred(trained, random_pairs(num_pairs))

    result = trained.step(pairs, learning_rate=0.0)

    assert result is not None
    assert result.figures["loss"] == pytest.approx(math.log(2), abs=2e-16)
    assert result.figures["rewards/margins"] == 0.0
    assert result.figures["logps/chosen"] == result.figures["ref_logps/chosen"]


def test_figures_follow_their_definitions(llama: Path):
    trained = learner(load_policy(Model(source=str(llama))), method=Method(beta=0.5, sigmoid=Sigmoid(label_smoothing=0.2)))
    at_reference = trained.reference_logprobs(random_pairs(2))
    # The policy has moved away from the reference by: chosen +2 and -4, rejected -1 and +3.
    pairs = [
        replace(pair, reference_chosen=chosen - up, reference_rejected=rejected - down)
        for pair, (chosen, rejected), up, down in zip(random_pairs(2), at_reference, (2.0, -4.0), (-1.0, 3.0), strict=True)
    ]

    result = trained.step(pairs, learning_rate=0.25)

    # Margins 0.5 * 3 and 0.5 * -7; loss the mean of 0.8 log(1 + e^-m) + 0.2 log(1 + e^m).
    losses = [0.8 * math.log1p(math.exp(-m)) + 0.2 * math.log1p(math.exp(m)) for m in (1.5, -3.5)]
    want = {
        "loss": sum(losses) / 2,
        "logps/chosen": (at_reference[0][0] + at_reference[1][0]) / 2,
        "logps/rejected": (at_reference[0][1] + at_reference[1][1]) / 2,
        "ref_logps/chosen": (at_reference[0][0] + at_reference[1][0]) / 2 + 1.0,
        "ref_logps/rejected": (at_reference[0][1] + at_reference[1][1]) / 2 - 1.0,
        "rewards/chosen": -0.5,
        "rewards/rejected": 0.5,
        "rewards/margins": -1.0,
        "rewards/accuracies": 0.5,
        "lr": 0.25,
        "tokens": sum(pair.num_tokens for pair in pairs),
        "pairs": 2.0,
    }
    assert result is not None
    grad_norm = result.figures.pop("grad_norm")
    assert result.figures == pytest.approx(want, rel=1e-6)
    assert grad_norm > 0


def test_training_makes_chosen_likelier_than_rejected(llama: Path):
    policy = load_policy(Model(source=str(llama)))
    trained = learner(policy, make_optimizer(policy.parameters(), Trainer()))
    pairs = referred(trained, random_pairs(8))

    results = [trained.step(pairs, learning_rate=1e-3) for _ in range(4)]

    losses = [result.figures["loss"] for result in results if result]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5
    assert results[-1] is not None
    assert results[-1].figures["rewards/accuracies"] == 1.0


def test_the_same_steps_give_the_same_bits(llama: Path):
    def weights_after_three_steps() -> list[Tensor]:
        policy = load_policy(Model(source=str(llama)))
        trained = learner(policy, make_optimizer(policy.parameters(), Trainer()), tokensPerMicroBatch=64)
        pairs = referred(trained, random_pairs(9))
        for _ in range(3):
            trained.step(pairs, learning_rate=1e-3)
        return list(policy.state().values())

    first, second = weights_after_three_steps(), weights_after_three_steps()

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_recomputing_layers_changes_nothing_but_memory(llama: Path):
    pairs = referred(learner(load_policy(Model(source=str(llama)))), random_pairs(4), shift=1.0)
    plain = load_policy(Model(source=str(llama)))
    recomputing = shard_policy(
        load_policy(Model(source=str(llama))), mesh=OneRank(), compute_dtype=torch.float32, activation_checkpointing=True
    )
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    recomputing.decoder_layers()[0].get_submodule("mlp").register_forward_pre_hook(count)

    assert recomputing.state().keys() == plain.state().keys()
    (plain_loss, plain_gradient), (loss, other_gradient) = gradient(plain, pairs), gradient(recomputing, pairs)

    assert runs == 2
    assert loss == plain_loss
    assert torch.equal(other_gradient, plain_gradient)


def test_large_gradients_are_scaled_to_the_norm_and_reported_as_they_were(llama: Path):
    pairs = referred(learner(load_policy(Model(source=str(llama)))), random_pairs(4), shift=1.0)
    _, whole = gradient(load_policy(Model(source=str(llama))), pairs)
    policy = load_policy(Model(source=str(llama)))
    start = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()

    result = learner(policy, maxGradNorm=0.01).step(pairs, learning_rate=1.0)

    step = start - torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    assert result is not None
    assert result.figures["grad_norm"] == pytest.approx(whole.norm().item(), rel=1e-4)
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("reference", "named", "not_named"),
    [
        pytest.param(float("nan"), "prompt-1", "prompt-0", id="one pair"),
        pytest.param(float("inf"), "prompt-1", "prompt-2", id="infinite"),
    ],
)
def test_a_loss_that_is_not_finite_names_its_prompts_and_takes_no_step(reference: float, named: str, not_named: str, llama: Path):
    policy = load_policy(Model(source=str(llama)))
    trained = learner(policy)
    pairs = referred(trained, random_pairs(3))
    pairs[1] = replace(pairs[1], reference_chosen=reference)
    start = [tensor.clone() for tensor in policy.state().values()]

    with pytest.raises(NonFiniteError, match=named) as caught:
        trained.step(pairs, learning_rate=1.0)

    assert not_named not in str(caught.value)
    assert all(torch.equal(one, other) for one, other in zip(start, policy.state().values(), strict=True))
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_a_gradient_that_is_not_finite_takes_no_step_either(llama: Path):
    policy = load_policy(Model(source=str(llama)))
    trained = learner(policy)
    pairs = referred(trained, random_pairs(2))
    next(policy.parameters()).register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(NonFiniteError, match=r"gradient norm nan.* prompts prompt-0, prompt-1"):
        trained.step(pairs, learning_rate=1.0)


def test_a_stop_between_micro_batches_leaves_weights_and_gradients_as_before(llama: Path):
    policy = load_policy(Model(source=str(llama)))
    trained = learner(policy, tokensPerMicroBatch=64)
    pairs = referred(trained, random_pairs(12))
    start = [tensor.clone() for tensor in policy.state().values()]
    answers = iter([False, True])

    assert trained.step(pairs, learning_rate=1.0, should_stop=lambda: next(answers)) is None

    assert all(torch.equal(one, other) for one, other in zip(start, policy.state().values(), strict=True))
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_some_pairs_without_reference_are_refused(llama: Path):
    trained = learner(fp64_policy(llama))
    pairs = [*random_pairs(1), *referred(trained, random_pairs(2)[1:])]

    with pytest.raises(ValueError, match="pair of prompt 'prompt-0' has no reference log-probs, but others do"):
        trained.step(pairs, learning_rate=1.0)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sppoHard"])
def test_a_step_without_references_is_the_one_whose_references_are_the_policy(loss: Any, llama: Path):
    bare = random_pairs(5)
    policies = [fp64_policy(llama) for _ in range(2)]
    with_own, with_given = (learner(policy, method=Method(loss=loss), tokensPerMicroBatch=64) for policy in policies)

    given = referred(with_given, bare)
    results = with_own.step(bare, learning_rate=1.0), with_given.step(given, learning_rate=1.0)

    assert results[0] is not None
    assert results[0] == results[1]
    assert results[0].logprobs == [(pair.reference_chosen, pair.reference_rejected) for pair in given]
    for one, other in zip(*(policy.state().values() for policy in policies), strict=True):
        assert torch.equal(one, other)


def test_a_step_without_pairs_is_refused(llama: Path):
    trained = learner(load_policy(Model(source=str(llama))))

    with pytest.raises(ValueError, match="a step needs at least one pair"):
        trained.step([], learning_rate=1.0)
