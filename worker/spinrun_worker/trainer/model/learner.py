"""The learner: reference log-probs and optimizer steps over pairs, with the same result on one rank or many."""

# ruff: noqa: N815 - shape suffixes
# P = pairs of a step, B = pairs of a micro-batch, S = completions (2B)
# N = values of a pair: log-probs of chosen and rejected and, for cringe, the contrast of rejected
# T = completion tokens of pairs: of pair 0's chosen, of pair 0's rejected, of pair 1's chosen …
# 2 = chosen, rejected

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from spinrun_api.spec import Method, Trainer
from spinrun_api.spec.rollout import DEFAULT_TOKENS
from spinrun_worker.errors import RunError
from spinrun_worker.methods import grpo
from spinrun_worker.methods.losses import PairLogprobs, num_pairs, pair_losses, pair_weights
from spinrun_worker.records import ByToken, Pair
from spinrun_worker.trainer.model.flops import ModelFlops
from spinrun_worker.trainer.model.logprobs import sum_by_completion
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
    reference there are no ref_logps; where pairs have weights, pair_weight is their mean. With grpo those of `grpo.figures` in
    place of …/…."""
    loss_at_reference: float | None
    """What the loss would be if the policy were the reference; None where the loss compares with none."""
    logprobs: list[tuple[float, float]]
    """(chosen, rejected) summed log-probs of each pair before the step, in nats."""
    by_token: list[ByToken] | None = None
    """The same of each token, with grpo and where the pairs have those of the rollouts; else None."""


class Learner:
    """Trains a policy on pairs. All ranks call every method together, with the same pairs."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        *,
        method: Method,
        trainer: Trainer,
        max_tokens: int = DEFAULT_TOKENS,
        temperature: float = 1.0,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            policy: The policy, after `shard_policy`.
            optimizer: The optimizer over its parameters.
            method: The spec's loss and its settings.
            trainer: The spec's batching and clipping.
            max_tokens: Longest answer.
            temperature: At which log-probs are taken.
            control: Gloo group for votes and figures. None means the default group, if there is one, which must then be gloo's.
        """
        self.policy = policy
        self.optimizer = optimizer
        self.method = method
        self.trainer = trainer
        self.max_tokens = max_tokens
        policy.temperature = temperature
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

    @torch.no_grad()
    def logprobs_by_token(self, pairs: Sequence[Pair]) -> list[ByToken]:
        """Log-probs of each token of each pair under the policy as it is now, on every rank and with the bits of `step`.

        Args:
            pairs: The pairs of one step.
        """
        parts = [self._forward(micro) for micro in self._micro_batches(pairs, top_k=0, by_token=True)]
        self.policy.release()
        return _by_pair(self._everyones_tokens(parts, pairs), pairs)

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
        divisor = self._divisor(pairs)
        by_token = self.method.loss == "grpo" or any(pair.sampled_by_token is not None for pair in pairs)
        parts: list[_Part] = []
        cringe = self.method.cringe_settings
        for micro in self._micro_batches(pairs, top_k=cringe.top_k if cringe else 0, by_token=by_token):
            if self._any(should_stop is not None and should_stop()):
                self.optimizer.zero_grad()
                return None
            part = self._forward(micro)
            (self._sum_of_losses(part, pairs) / divisor).backward()
            parts.append(part.detach())
        values_PN = self._everyones(parts, len(pairs))
        policy_P2 = values_PN[:, :2]
        tokens_T = self._everyones_tokens(parts, pairs) if by_token else None
        losses_P, losses_at_reference_P, figures = self._outcome(pairs, values_PN, tokens_T)
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
                **figures,
                "grad_norm": grad_norm,
                "lr": learning_rate,
                "tokens": float(sum(pair.num_tokens for pair in pairs)),
                "pairs": float(len(pairs)),
            },
            loss_at_reference=None if losses_at_reference_P is None else losses_at_reference_P.sum().item() / divisor,
            logprobs=[(chosen, rejected) for chosen, rejected in policy_P2.tolist()],
            by_token=None if tokens_T is None else _by_pair(tokens_T, pairs),
        )

    def _outcome(
        self, pairs: Sequence[Pair], values_PN: Tensor, tokens_T: Tensor | None
    ) -> tuple[Tensor, Tensor | None, dict[str, float]]:
        """[P] losses of all pairs of the step, [P] what they would be if the policy were the reference, and the figures."""
        if self.method.loss == "grpo":
            assert tokens_T is not None  # grpo's parts have them
            tokens = _tokens_of(pairs, tokens_T, self.method)
            at_reference = replace(tokens, policy_T=tokens.old_T)
            losses_P, losses_at_reference_P = (
                _sum_by_pair(grpo.token_losses(each, self.method), pairs) for each in (tokens, at_reference)
            )
            return losses_P, losses_at_reference_P, grpo.figures(tokens, self.method)
        policy_P2, contrast_P = values_PN[:, :2], values_PN[:, 2:]
        known = self._known(pairs, policy_P2)
        figures = _preference_figures(policy_P2, known, self.method)
        if self.method.weighs_pairs:
            figures |= {"pair_weight": pair_weights(PairLogprobs(policy_P2, *known), self.method).mean().item()}
        losses_P = self._losses(values_PN, known)
        if not self.method.uses_reference:
            return losses_P, None, figures
        return losses_P, self._losses(torch.cat([known.reference_P2, contrast_P], dim=1), known), figures

    def _divisor(self, pairs: Sequence[Pair]) -> float:
        """What the step's sum of losses is divided by."""
        settings = self.method.grpo_settings
        if settings is None:
            return num_pairs(_num_tokens(pairs), self.method)
        return grpo.divisor(_num_tokens(pairs), settings.mean, max_tokens=self.max_tokens)

    def _micro_batches(self, pairs: Sequence[Pair], *, top_k: int, by_token: bool = False) -> list[MicroBatch]:
        """This rank's share of a step."""
        plan = plan_step(
            [self.policy.num_tokens(pair) for pair in pairs],
            world_size=self._world_size,
            tokens_per_micro_batch=self.trainer.tokens_per_micro_batch,
            padded=not self.policy.packs,
        )
        tail_weight = self.method.length_desensitize
        return [pack(pairs, indices, top_k=top_k, tail_weight=tail_weight, by_token=by_token) for indices in plan[self._rank]]

    def _forward(self, micro: MicroBatch) -> "_Part":
        micro = micro.to(self._device)
        values = cast(Tensor, self.policy(micro))
        tokens_T = None
        if micro.by_token:
            tokens_T = values if micro.noise_CK is None else values[:, 0]
            values = sum_by_completion(values, micro.lengths_S, micro.weight_C)
        if micro.noise_CK is None:
            return _Part(micro.pair_indices, values.view(-1, 2), tokens_T)
        logprobs_S, contrasts_S = values.unbind(1)
        return _Part(micro.pair_indices, torch.cat([logprobs_S.view(-1, 2), contrasts_S[1::2, None]], dim=1), tokens_T)

    def _sum_of_losses(self, part: "_Part", pairs: Sequence[Pair]) -> Tensor:
        """Scalar: the losses of a micro-batch's pairs."""
        if not part.indices:
            # A row without pairs. Its backward pass must run all the same, because the other ranks wait for its collectives.
            return part.values_BN.sum() * 0.0
        of_part = [pairs[index] for index in part.indices]
        if self.method.loss == "grpo":
            assert part.tokens_T is not None  # as `step` asks for
            return grpo.token_losses(_tokens_of(of_part, part.tokens_T, self.method), self.method).sum()
        known = self._known(of_part, part.values_BN[:, :2].detach())
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

    def _everyones_tokens(self, parts: Sequence["_Part"], pairs: Sequence[Pair]) -> Tensor:
        """[T] log-probs of all tokens of the step in order, fp64, on every rank and on the CPU."""
        ends = list(accumulate((len(pair.chosen) + len(pair.rejected) for pair in pairs), initial=0))
        tokens_T = torch.zeros(ends[-1], dtype=torch.float64)
        for part in parts:
            if not part.indices:
                continue
            assert part.tokens_T is not None  # all parts of a step are alike
            places = [place for index in part.indices for place in range(ends[index], ends[index + 1])]
            tokens_T[places] = part.tokens_T.double().cpu()
        if self._world_size > 1:
            dist.all_reduce(tokens_T, group=self._control)
        return tokens_T

    def _losses(self, values_BN: Tensor, known: "_Known") -> Tensor:
        """[B] loss of each pair."""
        contrast_B = values_BN[:, 2] if self.method.cringe_settings else None
        return pair_losses(PairLogprobs(values_BN[:, :2], *known, contrast_B), self.method)

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
            f"prompts {names}: lower trainer.learningRate{'' if self.method.loss == 'grpo' else ' or method.beta'}"
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
    tokens_T: Tensor | None
    """[T] log-probs of their tokens, where they are wanted."""

    def detach(self) -> "_Part":
        """The same without what a backward pass needs."""
        return _Part(self.indices, self.values_BN.detach(), None if self.tokens_T is None else self.tokens_T.detach())


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


def _tokens_of(pairs: Sequence[Pair], policy_T: Tensor, method: Method) -> grpo.TokenLogprobs:
    """What grpo knows of the tokens of pairs. Where nothing else is known, the old policy is the policy as it is now, and the
    reference the old policy."""
    old = [pair.policy_by_token for pair in pairs]
    reference = [pair.reference_by_token for pair in pairs]
    settings = method.grpo_settings
    assert settings is not None  # the loss is grpo
    num_tokens_P2 = _num_tokens(pairs)
    lengths_S = num_tokens_P2.long().flatten()
    rewards_P2 = torch.tensor([(pair.chosen_reward, pair.rejected_reward) for pair in pairs], dtype=torch.float64)
    weights_P2 = grpo.token_weights(num_tokens_P2, settings.mean)
    sampled = [value for pair in pairs for value in _sampled(pair)]
    old_T = policy_T.detach() if old[0] is None else _flat(old).to(policy_T)
    return grpo.TokenLogprobs(
        policy_T,
        old_T,
        torch.tensor(sampled, dtype=torch.float64).to(policy_T),
        old_T if reference[0] is None else _flat(reference).to(policy_T),
        rewards_P2.flatten().repeat_interleave(lengths_S).to(policy_T),
        weights_P2.flatten().repeat_interleave(lengths_S).to(policy_T),
    )


def _sampled(pair: Pair) -> Sequence[float]:
    """The rollout's log-probs of both completions; NaN where it has not said."""
    if pair.sampled_by_token is None:
        return [math.nan] * (len(pair.chosen) + len(pair.rejected))
    return pair.sampled_by_token.values


def _flat(by_token: Sequence[ByToken | None]) -> Tensor:
    """[T] fp64 of all pairs, none of which may be None."""
    values = [value for each in by_token if each is not None for value in each.values]
    return torch.tensor(values, dtype=torch.float64)


def _by_pair(tokens_T: Tensor, pairs: Sequence[Pair]) -> list[ByToken]:
    values = iter(tokens_T.tolist())
    return [ByToken(tuple(islice(values, len(pair.chosen))), tuple(islice(values, len(pair.rejected)))) for pair in pairs]


def _sum_by_pair(values_T: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """[P] sums over the tokens of both completions."""
    return sum_by_completion(values_T, _num_tokens(pairs).sum(dim=1).long())


def _num_tokens(pairs: Sequence[Pair]) -> Tensor:
    """[P, 2] tokens of the completions, fp64."""
    return torch.tensor([(len(pair.chosen), len(pair.rejected)) for pair in pairs], dtype=torch.float64)


def _require_references(pairs: Sequence[Pair]) -> None:
    """Raises ValueError when there are no pairs, or only some have a reference."""
    if not pairs:
        raise ValueError("a step needs at least one pair: skip it")
    for name in ("policy_by_token", "reference_by_token"):
        if 0 < sum(getattr(pair, name) is None for pair in pairs) < len(pairs):
            raise ValueError(f"some pairs of the step have {name} and others do not: run the reference pass first")
    without = [pair.prompt_id for pair in pairs if pair.reference_chosen is None or pair.reference_rejected is None]
    if 0 < len(without) < len(pairs):
        raise ValueError(f"pair of prompt {without[0]!r} has no reference log-probs, but others do: run the reference pass first")
