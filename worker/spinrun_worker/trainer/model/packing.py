"""Packing: which pairs a rank trains together, and how they are laid out in one row of tokens without padding.

A pair is laid out as [prompt][chosen][rejected]: its prompt is computed once and serves both completions. The rejected
completion continues the prompt's positions and does not see the chosen one (`attention.py`). A model that cannot be packed gets
the same row, and takes the sequences apart (`unpack`).
"""

# ruff: noqa: N815 - shape suffixes

# P = pairs, S = completions (2P: chosen and rejected of each pair), T = packed tokens, C = tokens of the completions,
# K = tokens to draw from

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.attention import PairLengths, PairsLayout
from spinrun_worker.trainer.ranks.balance import divide_evenly


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs in one row, as the policy processes them."""

    # Many fields: a forward pass takes them together, and `to` moves them together.

    token_ids_T: Tensor
    """[T] the pairs, one after another."""
    position_ids_T: Tensor
    """[T] position of each token in its own sequence, which is the prompt and one completion."""
    source_C: Tensor
    """[C] position in the row of the hidden state that predicts each completion token."""
    target_C: Tensor
    """[C] the completion tokens: of pair 0's chosen, of pair 0's rejected, of pair 1's chosen …"""
    lengths_S: Tensor
    """[2P] number of tokens of each completion, in that order."""
    layout: PairsLayout
    """Where the pairs are, for attention."""
    pair_indices: tuple[int, ...]
    """Which of the step's pairs these are. Empty for a row that only keeps a rank in step with the others."""
    noise_CK: Tensor | None = None
    """[C, K] noise that draws another token for each completion token, where the loss needs one."""
    weight_C: Tensor | None = None
    """[C] fp64 weight of each completion token in the sum over its completion; None means 1."""
    by_token: bool = False
    """Whether the policy leaves the values of tokens unsummed."""

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


def plan_step(
    lengths: Sequence[int], *, world_size: int, tokens_per_micro_batch: int, padded: bool = False
) -> list[list[tuple[int, ...]]]:
    """Divide the pairs of a step among the ranks, and each rank's among micro-batches. Depends on the arguments alone.

    Every pair is in exactly one micro-batch. All ranks have the same number of micro-batches, some possibly empty. Only a single
    pair may exceed tokens_per_micro_batch.

    Args:
        lengths: Tokens of each pair, as `Policy.num_tokens` counts them.
        world_size: Number of ranks.
        tokens_per_micro_batch: Maximum number of tokens in a micro-batch.
        padded: Whether all pairs of a micro-batch take as many tokens as its longest.

    Returns:
        [rank][micro-batch] -> indices of pairs, ascending.
    """
    # The longest first: each goes to the first of its rank's micro-batches with room.
    plan = [_first_fit(indices, lengths, tokens_per_micro_batch, padded=padded) for indices in divide_evenly(lengths, world_size)]
    num_micro_batches = max(map(len, plan))
    return [micro_batches + [()] * (num_micro_batches - len(micro_batches)) for micro_batches in plan]


def _first_fit(indices: Sequence[int], lengths: Sequence[int], limit: int, *, padded: bool) -> list[tuple[int, ...]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for index in indices:

        def needed(place: int, index: int = index) -> int:
            # The first is the longest.
            return lengths[bins[place][0] if padded else index]

        place = next((place for place, free in enumerate(room) if needed(place) <= free), None)
        if place is None:
            place = len(bins)
            bins.append([])
            room.append(limit)
        bins[place].append(index)
        room[place] -= needed(place)
    return [tuple(sorted(members)) for members in bins]


def pack(
    pairs: Sequence[Pair], indices: Sequence[int], *, top_k: int = 0, tail_weight: float = 1.0, by_token: bool = False
) -> MicroBatch:
    """Lay out pairs in one row.

    Args:
        pairs: The pairs of the step.
        indices: Which of them; none gives a row of three tokens that belongs to no pair.
        top_k: Columns of noise; 0 means none.
        tail_weight: Weight of a completion's tokens beyond the length of the pair's shorter one: α of LD-DPO, arXiv 2409.06411.
            1 means no weights.
        by_token: Whether the policy leaves the values of tokens unsummed.

    Raises:
        ValueError: A pair has no prompt, so nothing would predict its first completion tokens.
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
        by_token=by_token,
    )


def unpack(layout: PairsLayout) -> tuple[Tensor, Tensor]:
    """Where the tokens of a row are if every completion, after its prompt, is a sequence of its own in a padded batch.

    Args:
        layout: Where the pairs are in the row.

    Returns:
        [S, L] the position in the row of each token of the batch, with that of some token as padding, and [C] the position in the
        flattened batch of the hidden state that predicts each completion token, in the order of `MicroBatch.target_C`.
    """
    longest = max(pair.prompt + max(pair.chosen, pair.rejected) for pair in layout.pairs)
    sequences: list[list[int]] = []
    source: list[int] = []
    start = 0
    for pair in layout.pairs:
        prompt, rejected = range(start, start + pair.prompt), start + pair.chosen_end
        for completion in (range(prompt.stop, rejected), range(rejected, rejected + pair.rejected)):
            first = len(sequences) * longest + pair.prompt - 1
            source += range(first, first + len(completion))
            tokens = [*prompt, *completion]
            sequences.append(tokens + [0] * (longest - len(tokens)))
        start += sum(pair)
    return torch.tensor(sequences), torch.tensor(source, dtype=torch.long)


def _noise(pair: Pair, top_k: int) -> Tensor:
    """[tokens of both completions, top_k] Gumbel noise, which depends on the pair alone: not on packing, ranks or attempts."""
    seed = random.Random(f"{pair.prompt_id} {pair.chosen} {pair.rejected}").getrandbits(63)
    noise = torch.empty(len(pair.chosen) + len(pair.rejected), top_k)
    return -noise.exponential_(generator=torch.Generator().manual_seed(seed)).log()


def _weights(pair: Pair, tail_weight: float) -> Tensor:
    """[tokens of both completions] 1 up to the length of the shorter one, tail_weight beyond it."""
    shorter = min(len(pair.chosen), len(pair.rejected))
    positions = torch.tensor([*range(len(pair.chosen)), *range(len(pair.rejected))])
    return torch.where(positions < shorter, 1.0, torch.tensor(tail_weight, dtype=torch.float64))


def _lengths(pair: Pair) -> PairLengths:
    return PairLengths(len(pair.prompt), len(pair.chosen), len(pair.rejected))


_FILLER = Pair(prompt_id="", prompt=(0,), chosen=(0,), rejected=(0,), chosen_reward=0.0, rejected_reward=0.0)
