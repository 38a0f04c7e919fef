"""Packing: which pairs a rank trains together, and how they lie in one row of tokens without padding.

A pair lies as [prompt][chosen][rejected]: its prompt is computed once and serves both completions. The rejected completion
continues the prompt's positions and does not see the chosen one (`attention.py`).
"""

# ruff: noqa: N815 - shape suffixes

# P = pairs, S = completions (2P: chosen and rejected of each pair), T = packed tokens, C = tokens of the completions,
# K = tokens to draw from

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.attention import PairLengths, PairsLayout


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs in one row, as the policy takes them."""

    token_ids_T: Tensor
    """[T] the pairs one after the other."""
    position_ids_T: Tensor
    """[T] position of each token in its own sequence, prompt and one completion."""
    source_C: Tensor
    """[C] where in the row the hidden state stands that predicts each completion token."""
    target_C: Tensor
    """[C] the completion tokens: of pair 0's chosen, of pair 0's rejected, of pair 1's chosen …"""
    lengths_S: Tensor
    """[2P] tokens of each completion, in that order."""
    layout: PairsLayout
    """Where the pairs lie, for attention."""
    pair_indices: tuple[int, ...]
    """Which of the step's pairs these are. Empty: a row that only keeps a rank in step with the others."""
    noise_CK: Tensor | None = None
    """[C, K] what draws another token for each completion token, where a loss asks for one."""
    weight_C: Tensor | None = None
    """[C] fp64: how much each completion token counts in the sum over its completion; None: all alike."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        return replace(
            self,
            token_ids_T=self.token_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
            source_C=self.source_C.to(device),
            target_C=self.target_C.to(device),
            lengths_S=self.lengths_S.to(device),
            noise_CK=None if self.noise_CK is None else self.noise_CK.to(device),
            weight_C=None if self.weight_C is None else self.weight_C.to(device),
        )


def plan_step(lengths: Sequence[int], *, world_size: int, tokens_per_micro_batch: int) -> list[list[tuple[int, ...]]]:
    """[rank][micro-batch] -> indices of pairs, ascending.

    lengths: tokens of each pair, its prompt once. Every pair is in exactly one micro-batch; every rank has the same number of
    them, some possibly empty; none exceeds tokens_per_micro_batch but by being a single pair. Depends on the arguments alone.
    """
    # The longest first: the rank with the fewest tokens takes it, and there the first micro-batch with room.
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    loads = [(0, rank) for rank in range(world_size)]
    of_rank: list[list[int]] = [[] for _ in range(world_size)]
    for index in longest_first:
        tokens, rank = heapq.heappop(loads)
        of_rank[rank].append(index)
        heapq.heappush(loads, (tokens + lengths[index], rank))
    plan = [_first_fit(indices, lengths, tokens_per_micro_batch) for indices in of_rank]
    num_micro_batches = max(map(len, plan))
    return [micro_batches + [()] * (num_micro_batches - len(micro_batches)) for micro_batches in plan]


def _first_fit(indices: Sequence[int], lengths: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for index in indices:
        length = lengths[index]
        place = next((place for place, free in enumerate(room) if length <= free), None)
        if place is None:
            place = len(bins)
            bins.append([])
            room.append(limit)
        bins[place].append(index)
        room[place] -= length
    return [tuple(sorted(members)) for members in bins]


def pack(pairs: Sequence[Pair], indices: Sequence[int], *, top_k: int = 0, tail_weight: float = 1.0) -> MicroBatch:
    """The pairs at those indices in one row; without indices a row of three tokens that belongs to no pair.

    top_k: columns of noise; 0 makes none. tail_weight: weight of the tokens of a completion beyond the length of the pair's
    shorter one: α of LD-DPO, arXiv 2409.06411; 1 weighs none.
    Raises ValueError for a pair without a prompt, whose first completion token nothing would predict.
    """
    chosen = [pairs[index] for index in indices] or [_FILLER]
    token_ids: list[int] = []
    position_ids: list[int] = []
    source: list[int] = []
    target: list[int] = []
    for pair in chosen:
        start, lengths = len(token_ids), _lengths(pair)
        if not pair.prompt:
            raise ValueError(f"pair of prompt {pair.prompt_id!r} has an empty prompt: drop it")
        token_ids += [*pair.prompt, *pair.chosen, *pair.rejected]
        position_ids += [*range(lengths.chosen_end), *range(lengths.prompt, lengths.prompt + lengths.rejected)]
        # Both first completion tokens are predicted from the prompt's last position.
        last_of_prompt = start + lengths.prompt - 1
        source += range(last_of_prompt, last_of_prompt + lengths.chosen)
        if lengths.rejected:
            rejected_start = start + lengths.chosen_end
            source += [last_of_prompt, *range(rejected_start, rejected_start + lengths.rejected - 1)]
        target += [*pair.chosen, *pair.rejected]
    layout = PairsLayout(tuple(_lengths(pair) for pair in chosen))
    return MicroBatch(
        token_ids_T=torch.tensor(token_ids),
        position_ids_T=torch.tensor(position_ids),
        source_C=torch.tensor(source, dtype=torch.long),
        target_C=torch.tensor(target, dtype=torch.long),
        lengths_S=torch.tensor([length for pair in chosen for length in (len(pair.chosen), len(pair.rejected))]),
        layout=layout,
        pair_indices=tuple(indices),
        noise_CK=torch.cat([_noise(pair, top_k) for pair in chosen]) if top_k else None,
        weight_C=torch.cat([_weights(pair, tail_weight) for pair in chosen]) if tail_weight != 1 else None,
    )


def _noise(pair: Pair, top_k: int) -> Tensor:
    """[tokens of both completions, top_k] Gumbel noise. The pair alone decides it: not packing, ranks or an earlier attempt."""
    seed = random.Random(f"{pair.prompt_id} {pair.chosen} {pair.rejected}").getrandbits(63)
    noise = torch.empty(len(pair.chosen) + len(pair.rejected), top_k)
    return -noise.exponential_(generator=torch.Generator().manual_seed(seed)).log()


def _weights(pair: Pair, tail_weight: float) -> Tensor:
    """[tokens of both completions] 1 up to the length of the shorter one, tail_weight from there on."""
    shorter = min(len(pair.chosen), len(pair.rejected))
    positions = torch.tensor([*range(len(pair.chosen)), *range(len(pair.rejected))])
    return torch.where(positions < shorter, 1.0, torch.tensor(tail_weight, dtype=torch.float64))


def _lengths(pair: Pair) -> PairLengths:
    return PairLengths(len(pair.prompt), len(pair.chosen), len(pair.rejected))


_FILLER = Pair(prompt_id="", prompt=(0,), chosen=(0,), rejected=(0,), chosen_reward=0.0, rejected_reward=0.0)
