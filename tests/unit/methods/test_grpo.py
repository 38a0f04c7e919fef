"""GRPO against numbers worked by hand, and against TRL: its GRPOTrainer computes on log-probs that the tests give it."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import SGD
from transformers import AutoModelForCausalLM

from spinrun_api.spec import Grpo, Method, Trainer
from spinrun_worker.methods.grpo import TokenLogprobs, figures, importance_weights, token_losses
from spinrun_worker.methods.pairing import advantages
from spinrun_worker.records import ByToken, Pair
from spinrun_worker.trainer.model.learner import Learner, NonFiniteError
from spinrun_worker.trainer.reference.self_check import self_check
from support.models import random_pairs
from unit.trainer.model.test_learner import NO_CLIPPING, fp64_policy

MAX_TOKENS = 16
TEMPERATURE = 0.7


def method_with(*, kl_weight: float = 0.0, **settings: Any) -> Method:
    return Method.model_validate({"name": "grpo", "loss": "grpo", "klWeight": kl_weight, "grpo": settings})


def tokens(advantage: Sequence[float], **logprobs: Sequence[float]) -> TokenLogprobs:
    """Log-probs of tokens; those that are not named are -1."""
    given = {name: torch.tensor(values, dtype=torch.float64) for name, values in logprobs.items()}
    at_minus_one = torch.full((len(advantage),), -1.0, dtype=torch.float64)
    policy, old, sampled, reference = (given.get(name, at_minus_one) for name in ("policy", "old", "sampled", "reference"))
    advantages = torch.tensor(advantage, dtype=torch.float64)
    return TokenLogprobs(policy, old, sampled, reference, advantages, torch.ones_like(at_minus_one))


# --- numbers worked by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "scale", "want"),
    [
        ([1.0, 0.0, 0.0, 1.0], "none", [0.5, -0.5, -0.5, 0.5]),
        # The unbiased variance is 4 · 0.25 / 3.
        ([1.0, 0.0, 0.0, 1.0], "group", [0.5 / (math.sqrt(1 / 3) + 1e-4) * sign for sign in (1, -1, -1, 1)]),
        # Two answers are enough: 2-GRPO.
        ([3.0, 1.0], "group", [1 / (math.sqrt(2) + 1e-4), -1 / (math.sqrt(2) + 1e-4)]),
        ([0.1, 0.1, 0.1], "none", [0.0, 0.0, 0.0]),
        ([1e300, -1e300], "group", [math.sqrt(0.5), -math.sqrt(0.5)]),
    ],
    ids=["Dr. GRPO", "GRPO", "two answers", "equal rewards", "the largest rewards"],
)
def test_advantages_are_rewards_against_those_of_the_prompt(rewards: list[float], scale: str, want: list[float]):
    assert advantages(rewards, Grpo.model_validate({"scaleRewards": scale})) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("advantage", "policy", "want"),
    [
        (2.0, math.log(1.1) - 1, -2.2),
        (2.0, math.log(3.0) - 1, -2.56),  # clipped at 1.28
        (2.0, math.log(0.5) - 1, -1.0),  # below 1 there is room to grow
        (-2.0, math.log(0.5) - 1, 1.6),  # clipped at 0.8
        (-2.0, math.log(3.0) - 1, 6.0),  # above 1 there is room to shrink
    ],
)
def test_a_token_moves_the_model_while_its_ratio_is_within_the_clip(advantage: float, policy: float, want: float):
    method = method_with(clipLow=0.2, clipHigh=0.28)

    assert token_losses(tokens([advantage], policy=[policy]), method).item() == pytest.approx(want, rel=1e-12)


def test_what_a_rollout_found_less_likely_counts_more_up_to_the_cap():
    known = tokens([1.0] * 4, sampled=[-1.0 - math.log(1.5), -1.0 - math.log(9.0), 0.0, math.nan])

    assert importance_weights(known, Grpo()).tolist() == pytest.approx([1.5, 2.0, math.exp(-1), 1.0], rel=1e-12)
    assert importance_weights(known, Grpo(importance_cap=0)).tolist() == [1.0] * 4


def test_divergence_is_k3_by_token_and_not_weighted_by_importance():
    known = tokens([0.0], policy=[-1.0], reference=[-2.0], sampled=[-3.0])

    assert token_losses(known, method_with(kl_weight=0.5)).item() == pytest.approx(0.5 * (math.exp(-1) + 1 - 1), rel=1e-12)


def test_figures_count_what_was_clipped():
    known = tokens(
        [1.0, 1.0, -1.0, -1.0, 0.0],
        policy=[math.log(2.0) - 1, math.log(0.5) - 1, math.log(0.5) - 1, math.log(2.0) - 1, math.log(2.0) - 1],
        sampled=[-1.0, -2.0, -1.5, -1.0, -1.0],
    )

    assert figures(known, method_with()) == pytest.approx(
        {
            "clip_ratio/low_mean": 0.2,
            "clip_ratio/high_mean": 0.2,
            "clip_ratio/region_mean": 0.4,
            "sampling/importance_sampling_ratio/min": 1.0,
            "sampling/importance_sampling_ratio/mean": (3 + 2 + math.exp(0.5)) / 5,
            "sampling/importance_sampling_ratio/max": 2.0,
        }
    )
    assert "kl" in figures(known, method_with(kl_weight=0.1))
    assert "sampling/importance_sampling_ratio/max" not in figures(known, method_with(importanceCap=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_stay_finite_far_from_the_old_policy(dtype: torch.dtype):
    far = [(policy, old, advantage) for policy in (-2000.0, -1.0) for old in (-2000.0, -1.0) for advantage in (-1.0, 0.0, 1.0)]
    policy, old, advantage = (torch.tensor(column, dtype=dtype) for column in zip(*far, strict=True))
    policy.requires_grad_()

    losses = token_losses(
        TokenLogprobs(policy, old, old - 1000, old, advantage, torch.ones_like(old)), method_with(kl_weight=0.1)
    )
    losses.sum().backward()

    assert losses.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


# --- in the learner, against TRL ------------------------------------------------------------------------------------

Loss = Callable[..., tuple[Tensor, dict[str, float]]]


def trained(method: Method, llama: Path, **trainer: Any) -> Learner:
    policy = fp64_policy(llama)
    settings = Trainer.model_validate({"maxGradNorm": NO_CLIPPING, **trainer})
    optimizer = SGD(policy.parameters(), lr=1.0)
    return Learner(policy, optimizer, method=method, trainer=settings, max_tokens=MAX_TOKENS, temperature=TEMPERATURE)


def moved(by_token: ByToken, generator: random.Random, by: float) -> ByToken:
    """Log-probs as another policy would have them."""
    return ByToken(*(tuple(value + generator.gauss(0, by) for value in of) for of in (by_token.chosen, by_token.rejected)))


def sampled_pairs(learner: Learner) -> list[Pair]:
    """Pairs with advantages, one of them an answer that is alone, and log-probs of all that the loss knows."""
    generator = random.Random(1)
    bare = random_pairs(5)
    bare = [*bare[:4], replace(bare[4], rejected=())]
    return [
        replace(
            pair,
            chosen_reward=generator.gauss(0, 1),
            rejected_reward=generator.gauss(0, 1) if pair.rejected else 0.0,
            sampled_by_token=moved(now, generator, 0.5),
            policy_by_token=moved(now, generator, 0.3),
            reference_by_token=moved(now, generator, 0.5),
        )
        for pair, now in zip(bare, learner.logprobs_by_token(bare), strict=True)
    ]


def answers(pairs: Sequence[Pair], name: str) -> list[tuple[float, ...]]:
    """Log-probs of each answer that is there."""
    of_pairs = [cast(ByToken, getattr(pair, name)) for pair in pairs]
    return [side for each in of_pairs for side in (each.chosen, each.rejected) if side]


def padded(values: Sequence[Sequence[float]]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.float64) for row in values], batch_first=True)


@pytest.fixture(scope="session")
def trl() -> Loss:
    """The loss of TRL's GRPOTrainer for a batch and its figures.

    The settings that it reads are in place of a trainer, and log-probs in place of a model.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    def loss_of(loss_type: str, policy: Tensor, pairs: Sequence[Pair], method: Method) -> tuple[Tensor, dict[str, float]]:
        settings = method.grpo_settings
        assert settings is not None
        mask = padded([[1.0] * len(row) for row in answers(pairs, "policy_by_token")])
        old, sampled = padded(answers(pairs, "policy_by_token")), padded(answers(pairs, "sampled_by_token"))
        accelerator = SimpleNamespace(num_processes=1, gather=lambda each: each, reduce=lambda each, **_: each)
        trainer = SimpleNamespace(
            loss_type=loss_type,
            epsilon_low=settings.clip_low,
            epsilon_high=settings.clip_high,
            beta=method.kl_weight,
            max_completion_length=MAX_TOKENS,
            importance_sampling_level="token",
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            aux_loss_enabled=False,
            _entropy_bonus_enabled=False,
            current_gradient_accumulation_steps=1,
            args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
            model=SimpleNamespace(training=True),
            accelerator=accelerator,
            _metrics={"train": defaultdict(list)},
            _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        )
        rewards = [
            reward
            for pair in pairs
            for reward, tokens in ((pair.chosen_reward, pair.chosen), (pair.rejected_reward, pair.rejected))
            if tokens
        ]
        inputs = {
            "prompt_ids": torch.zeros(len(mask), 1),
            "prompt_mask": torch.ones(len(mask), 1),
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": mask,
            "advantages": torch.tensor(rewards, dtype=torch.float64),
            "old_per_token_logps": old,
            "ref_per_token_logps": padded(answers(pairs, "reference_by_token")),
            "importance_sampling_ratio": torch.exp((old - sampled) * mask).clamp(max=settings.importance_cap),
            "num_items_in_batch": mask.sum(),
        }
        loss = GRPOTrainer._compute_loss(cast(GRPOTrainer, trainer), None, inputs)
        metrics = trainer._metrics["train"]
        assert metrics["clip_ratio/low_mean"][0] > 0, "clipping is active"
        assert metrics["clip_ratio/high_mean"][0] > 0
        return loss, {name: values[0] for name, values in metrics.items()}

    return loss_of


@pytest.mark.parametrize("tokens_per_micro_batch", [16, 10_000])
@pytest.mark.parametrize(
    ("mean", "loss_type"), [("answers", "grpo"), ("tokens", "bnpo"), ("tokens", "dapo"), ("maxTokens", "dr_grpo")]
)
def test_loss_gradient_and_figures_are_trls_however_pairs_are_packed(
    trl: Loss, llama: Path, mean: str, loss_type: str, tokens_per_micro_batch: int
):
    method = method_with(kl_weight=0.04, mean=mean, clipLow=0.2, clipHigh=0.28)
    ours = trained(method, llama, tokensPerMicroBatch=tokens_per_micro_batch)
    pairs = sampled_pairs(ours)
    start = torch.nn.utils.parameters_to_vector(ours.policy.parameters()).detach().clone()

    result = ours.step(pairs, learning_rate=1.0)

    got_gradient = start - torch.nn.utils.parameters_to_vector(ours.policy.parameters()).detach()
    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64, attn_implementation="eager")

    def by_token(prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        return logits.log_softmax(-1)[torch.arange(len(completion)), list(completion)]

    policy = pad_sequence(
        [by_token(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected) if side], batch_first=True
    )
    want, metrics = trl(loss_type, policy, pairs, method)
    want.backward()
    want_gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])
    assert result is not None
    assert result.figures["loss"] == pytest.approx(want.item(), rel=1e-5)
    torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6 * want_gradient.abs().max().item())
    names = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
    assert {name: result.figures[name] for name in names} == pytest.approx({name: metrics[name] for name in names}, rel=1e-5)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_trls(scale: str):
    from trl.trainer.utils import nanstd

    rewards = torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    want = (rewards - rewards.mean()) / (nanstd(rewards) + 1e-4 if scale == "group" else 1.0)

    got = advantages(rewards.tolist(), Grpo.model_validate({"scaleRewards": scale}))

    # TRL corrects the variance by a factor in fp32.
    assert got == pytest.approx(want.tolist(), rel=1e-7)


def test_the_first_step_is_its_own_old_policy_to_the_last_bit(llama: Path):
    learner = trained(method_with(kl_weight=0.5, importanceCap=0), llama, tokensPerMicroBatch=16)
    bare = random_pairs(5)

    itself = learner.step(bare, learning_rate=0.0)
    known = [replace(pair, policy_by_token=of) for pair, of in zip(bare, learner.logprobs_by_token(bare), strict=True)]
    told = learner.step(known, learning_rate=0.0)

    assert itself is not None
    assert told is not None
    assert itself.by_token == [pair.policy_by_token for pair in known]
    assert itself.figures == told.figures
    assert itself.figures["kl"] == 0.0
    # Chosen answers have advantage 1 and rejected ones 0.
    chosen, every = (
        sum(len(getattr(pair, side)) for pair in bare for side in sides) for sides in (["chosen"], ["chosen", "rejected"])
    )
    assert itself.figures["loss"] == pytest.approx(-chosen / every, rel=1e-12)
    self_check(itself)
    assert not [name for name in itself.figures if name.startswith(("rewards/", "logps/", "ref_logps/"))]


def test_pairs_of_which_some_lack_the_old_policy_are_refused(llama: Path):
    learner = trained(method_with(), llama)
    first, *others = random_pairs(3)
    known = replace(first, policy_by_token=learner.logprobs_by_token([first])[0])

    with pytest.raises(ValueError, match="run the reference pass first"):
        learner.step([known, *others], learning_rate=0.0)


def test_a_step_that_is_not_finite_names_its_prompts_and_no_beta(llama: Path):
    learner = trained(method_with(), llama)
    pairs = sampled_pairs(learner)
    pairs[1] = replace(pairs[1], chosen_reward=math.inf)

    with pytest.raises(NonFiniteError, match=r"prompts prompt-1: lower trainer\.learningRate$"):
        learner.step(pairs, learning_rate=0.0)
