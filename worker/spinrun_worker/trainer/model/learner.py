"""The learner: reference log-probs and optimizer steps over pairs, with the same result on one rank or many."""

# ruff: noqa: N815 - shape suffixes
# P = pairs of a step, B = pairs of a micro-batch, S = completions (2B)
# N = values of a pair: log-probs of chosen and rejected and, for cringe, the contrast of rejected
# 2 = chosen, rejected

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from spinrun_api.spec import Method, Trainer
from spinrun_worker.errors import RunError
from spinrun_worker.methods.losses import PairLogprobs, num_pairs, pair_losses, pair_weights
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.flops import ModelFlops
from spinrun_worker.trainer.model.packing import MicroBatch, pack, plan_step
from spinrun_worker.trainer.model.policy import Policy
from spinrun_worker.trainer.model.precision import matmul_gflops

PEAK_SECONDS = 0.3


class NonFiniteError(RunError):
    """A non-finite loss or gradient (NaN or inf). The step was not taken; the message names the prompts."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did, the same on every rank."""

    figures: dict[str, float]
    """By name: loss (per pair), logps/…, ref_logps/…, rewards/… (means over the step's pairs), grad_norm (before clipping), lr,
    tokens (each prompt once), pairs. An answer without tokens is left out of means over answers. Where the loss compares with no
    reference there are no ref_logps; where pairs have weights, pair_weight is their mean."""
    loss_at_reference: float | None
    """What the loss would be if the policy were the reference; None where the loss compares with none."""
    logprobs: list[tuple[float, float]]
    """(chosen, rejected) summed log-probs of each pair before the step, in nats."""


class Learner:
    """Trains a policy on pairs. All ranks call every method together, with the same pairs."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        *,
        method: Method,
        trainer: Trainer,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            policy: The policy, after `shard_policy`.
            optimizer: The optimizer over its parameters.
            method: The spec's loss and its settings.
            trainer: The spec's batching and clipping.
            control: Gloo group for votes and figures. None means the default group, if there is one, which must then be gloo's.
        """
        self.policy = policy
        self.optimizer = optimizer
        self.method = method
        self.trainer = trainer
        self._control = control
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._device = next(policy.parameters()).device
        self._flops = ModelFlops(policy)
        self._peak_flops = 0.0

    @torch.no_grad()
    def reference_logprobs(self, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
        """Summed log-probs of each pair under the policy as it is now, on every rank.

        They are packed and summed as in `step` (weighted, with lengthDesensitize below 1), so its forward pass gives the same
        bits.

        Args:
            pairs: The pairs of one step.

        Returns:
            (chosen, rejected) of each pair, in nats.
        """
        parts = [self._forward(micro) for micro in self._micro_batches(pairs, top_k=0)]
        self.policy.release()
        return [(chosen, rejected) for chosen, rejected in self._everyones(parts, len(pairs)).tolist()]

    def step(
        self, pairs: Sequence[Pair], *, learning_rate: float, should_stop: Callable[[], bool] | None = None
    ) -> StepResult | None:
        """Take one optimizer step on the pairs of all ranks.

        The loss is the sum over pairs divided by their number, so packing and the number of ranks change only its rounding. Pairs
        without a reference are compared with the policy as it is now, whose log-probs the step's own forward pass gives. What
        pairs have of a reference is not read where the loss compares with none.

        Args:
            pairs: All pairs of the step, the same on every rank.
            learning_rate: The learning rate of this step.
            should_stop: Asked between two micro-batches.

        Returns:
            What the step did; None when any rank's should_stop was true, and no step was taken.

        Raises:
            ValueError: There are no pairs, or only some have a reference.
            NonFiniteError: On all ranks, in place of a step that would break the weights.
        """
        _require_references(pairs)
        divisor = num_pairs(_num_tokens(pairs), self.method)
        parts: list[_Part] = []
        cringe = self.method.cringe_settings
        for micro in self._micro_batches(pairs, top_k=cringe.top_k if cringe else 0):
            if self._any(should_stop is not None and should_stop()):
                self.optimizer.zero_grad()
                return None
            part = self._forward(micro)
            (self._sum_of_losses(part, pairs) / divisor).backward()
            parts.append(_Part(part.indices, part.values_BN.detach()))
        values_PN = self._everyones(parts, len(pairs))
        policy_P2, contrast_P = values_PN[:, :2], values_PN[:, 2:]
        known = self._known(pairs, policy_P2)
        losses_P = self._losses(values_PN, known)
        loss = losses_P.sum().item() / divisor
        grad_norm = self._clip_gradients()
        self._check_finite(pairs, policy_P2, losses_P, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepResult(
            {
                "loss": loss,
                **_preference_figures(policy_P2, known, self.method),
                "grad_norm": grad_norm,
                "lr": learning_rate,
                "tokens": float(sum(pair.num_tokens for pair in pairs)),
                "pairs": float(len(pairs)),
                **({"pair_weight": self._mean_weight(policy_P2, known)} if self.method.weighs_pairs else {}),
            },
            loss_at_reference=self._loss_at_reference(contrast_P, known, divisor),
            logprobs=[(chosen, rejected) for chosen, rejected in policy_P2.tolist()],
        )

    def _micro_batches(self, pairs: Sequence[Pair], *, top_k: int) -> list[MicroBatch]:
        """This rank's share of a step."""
        plan = plan_step(
            [self.policy.num_tokens(pair) for pair in pairs],
            world_size=self._world_size,
            tokens_per_micro_batch=self.trainer.tokens_per_micro_batch,
            padded=not self.policy.packs,
        )
        tail_weight = self.method.length_desensitize
        return [pack(pairs, indices, top_k=top_k, tail_weight=tail_weight) for indices in plan[self._rank]]

    def _forward(self, micro: MicroBatch) -> "_Part":
        values_S = cast(Tensor, self.policy(micro.to(self._device)))
        if micro.noise_CK is None:
            return _Part(micro.pair_indices, values_S.view(-1, 2))
        logprobs_S, contrasts_S = values_S.unbind(1)
        return _Part(micro.pair_indices, torch.cat([logprobs_S.view(-1, 2), contrasts_S[1::2, None]], dim=1))

    def _sum_of_losses(self, part: "_Part", pairs: Sequence[Pair]) -> Tensor:
        """Scalar: the losses of a micro-batch's pairs."""
        if not part.indices:
            # A row without pairs. Its backward pass must run all the same, because the other ranks wait for its collectives.
            return part.values_BN.sum() * 0.0
        known = self._known([pairs[index] for index in part.indices], part.values_BN[:, :2].detach())
        return self._losses(part.values_BN, known).sum()

    def _everyones(self, parts: Sequence["_Part"], num_pairs: int) -> Tensor:
        """[P, N] values of all pairs of the step in order, fp64, on every rank and on the CPU."""
        values_PN = torch.zeros(num_pairs, parts[0].values_BN.shape[1], dtype=torch.float64)
        for part in parts:
            if part.indices:
                values_PN[list(part.indices)] = part.values_BN.double().cpu()
        if self._world_size > 1:
            # A pair is on one rank and zero on the others, so its sum is itself, bit for bit.
            dist.all_reduce(values_PN, group=self._control)
        return values_PN

    def _losses(self, values_BN: Tensor, known: "_Known") -> Tensor:
        """[B] loss of each pair."""
        contrast_B = values_BN[:, 2] if self.method.cringe_settings else None
        return pair_losses(PairLogprobs(values_BN[:, :2], *known, contrast_B), self.method)

    def _mean_weight(self, policy_P2: Tensor, known: "_Known") -> float:
        return pair_weights(PairLogprobs(policy_P2, *known), self.method).mean().item()

    def _loss_at_reference(self, contrast_P: Tensor, known: "_Known", divisor: float) -> float | None:
        if not self.method.uses_reference:
            return None
        return self._losses(torch.cat([known.reference_P2, contrast_P], dim=1), known).sum().item() / divisor

    def _known(self, pairs: Sequence[Pair], policy_P2: Tensor) -> "_Known":
        """Log-probs under the policy before the step, policy_P2, are the reference of pairs that have no other."""
        reference = [(pair.reference_chosen, pair.reference_rejected) for pair in pairs]
        rewards = [(pair.chosen_reward, pair.rejected_reward) for pair in pairs]
        is_own = not self.method.uses_reference or reference[0][0] is None
        return _Known(
            policy_P2 if is_own else torch.tensor(reference, dtype=torch.float64).to(policy_P2),
            _num_tokens(pairs).to(policy_P2),
            torch.tensor(rewards, dtype=torch.float64).to(policy_P2),
        )

    def _clip_gradients(self) -> float:
        """Clip the gradients to the maximum norm; returns the norm before clipping, over all ranks."""
        parameters = [parameter for parameter in self.policy.parameters() if parameter.grad is not None]
        norm = get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if norm > self.trainer.max_grad_norm:
            clip_grads_with_norm_(parameters, self.trainer.max_grad_norm, norm)
        return norm.item()

    def _check_finite(self, pairs: Sequence[Pair], policy_P2: Tensor, losses_P: Tensor, grad_norm: float) -> None:
        """Raise NonFiniteError unless all values are finite. Every rank has the same values, so all raise or none."""
        finite_P = policy_P2.isfinite().all(dim=1) & losses_P.isfinite()
        if finite_P.all() and math.isfinite(grad_norm):
            return
        self.optimizer.zero_grad()
        suspects = [pair for pair, finite in zip(pairs, finite_P.tolist(), strict=True) if not finite] or pairs
        names = ", ".join(pair.prompt_id for pair in suspects[:8]) + (" …" if len(suspects) > 8 else "")
        raise NonFiniteError(
            f"the step has loss {losses_P.mean().item()} and gradient norm {grad_norm}, and was not taken. Its pairs are of "
            f"prompts {names}: lower trainer.learningRate or method.beta"
        )

    def utilization(self, pairs: Sequence[Pair], seconds: float) -> float:
        """Model FLOPs utilization of a step: what it computed, over what the ranks could have computed, each as fast as this one.

        This rank's speed is measured once, after a step: rollouts that share the machine are idle then.

        Args:
            pairs: The step's pairs.
            seconds: The step's duration.
        """
        if not self._peak_flops:
            dtype = self.policy.arithmetic_dtype
            self._peak_flops = matmul_gflops(dtype, device=self._device, seconds=PEAK_SECONDS) * 1e9
        return self._flops.of_step(pairs) / (seconds * self._world_size * self._peak_flops)

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        votes = torch.tensor(int(flag))
        if self._world_size > 1:
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._control)
        return bool(votes)


@dataclass(frozen=True, slots=True)
class _Part:
    """The result of a micro-batch: [B, N] values of its pairs. Without indices its one row belongs to no pair."""

    indices: tuple[int, ...]
    values_BN: Tensor


class _Known(NamedTuple):
    """[P, 2] each: what is known of chosen and rejected before a step, in the order of PairLogprobs."""

    reference_P2: Tensor
    num_tokens_P2: Tensor
    rewards_P2: Tensor


def _preference_figures(policy_P2: Tensor, known: _Known, method: Method) -> dict[str, float]:
    """Means over the step's existing answers, and over its pairs, where a missing answer counts as one that never moved.

    An answer's reward is beta times its log-ratio or, where the loss compares with no reference, its log-prob per token, as TRL's
    trainers of such losses log it.
    """
    measured_P2 = policy_P2 - known.reference_P2 if method.uses_reference else policy_P2 / known.num_tokens_P2.clamp(min=1)
    rewards_P2 = method.beta * measured_P2
    margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    num_answers_2 = (known.num_tokens_P2 > 0).sum(dim=0).clamp(min=1)
    of_answers = {
        f"{name}/{side}": (values_P2[:, column].sum() / num_answers_2[column]).item()
        for name, values_P2 in (("logps", policy_P2), ("ref_logps", known.reference_P2), ("rewards", rewards_P2))
        for column, side in enumerate(("chosen", "rejected"))
        if name != "ref_logps" or method.uses_reference
    }
    of_pairs = {"rewards/margins": margins_P.mean().item(), "rewards/accuracies": (margins_P > 0).double().mean().item()}
    return of_answers | of_pairs


def _num_tokens(pairs: Sequence[Pair]) -> Tensor:
    """[P, 2] tokens of the completions, fp64."""
    return torch.tensor([(len(pair.chosen), len(pair.rejected)) for pair in pairs], dtype=torch.float64)


def _require_references(pairs: Sequence[Pair]) -> None:
    """Raises ValueError when there are no pairs, or only some have a reference."""
    if not pairs:
        raise ValueError("a step needs at least one pair: skip it")
    without = [pair.prompt_id for pair in pairs if pair.reference_chosen is None or pair.reference_rejected is None]
    if 0 < len(without) < len(pairs):
        raise ValueError(f"pair of prompt {without[0]!r} has no reference log-probs, but others do: run the reference pass first")
