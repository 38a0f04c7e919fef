"""Attention over packed pairs, in a form that most transformers models accept (`attn_implementation="spinrun_pairs"`).

Each pair is two causal attentions: prompt and chosen over themselves; rejected over the prompt and itself. What a token may
not see is never computed: no mask over the row, no padding, and about half the work where completions are long. On a CPU a
dense mask over a row of 1000 tokens takes eight times as long, and pairs padded into a batch take a quarter longer.

Where all pairs of a row are short, on a CPU, two calls per pair cost more than the work they save: the pairs are then padded
into one batch, for attention alone.
"""

# H = heads, G = key-value heads, T = packed tokens, P = pairs, L = tokens of the longest, Q = queries, K = keys, D = head size

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.trainer.model.logprobs import at_least_fp32

IMPLEMENTATION = "spinrun_pairs"

SHORT = 256
"""Longest pair, in tokens, that is padded into a batch."""


class PairLengths(NamedTuple):
    """Tokens of the three parts of a pair."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def chosen_end(self) -> int:
        """Number of tokens up to the end of the chosen completion."""
        return self.prompt + self.chosen


@dataclass(frozen=True)
class PairsLayout:
    """Where the pairs are in a row of tokens. One layout serves all layers of a forward pass."""

    pairs: tuple[PairLengths, ...]
    windows: set[int | None] = field(default_factory=set[int | None])
    """Sliding windows that layers have used so far; None is full attention."""
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict[tuple[int, int, int | None], Tensor])
    _batch_masks: dict[object, Tensor] = field(default_factory=dict[object, Tensor])

    def mask(self, num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
        """[Q, K] true where a query sees a key. The queries are the last positions of the keys. Made once per shape."""
        shape = (num_queries, num_keys, window)
        if shape not in self._masks:
            query_Q1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
            key_K = torch.arange(num_keys, device=device)
            sees_QK = key_K <= query_Q1
            self._masks[shape] = sees_QK if window is None else sees_QK & (query_Q1 - key_K < window)
        return self._masks[shape]

    @cached_property
    def longest(self) -> int:
        """Length of the longest pair, in tokens."""
        return max(map(sum, self.pairs))

    @property
    def is_short(self) -> bool:
        """Whether attention is best computed for all pairs as one padded batch."""
        return len(self.pairs) > 1 and self.longest <= SHORT

    @cached_property
    def places(self) -> Tensor:
        """[T] the position of each token of the row in the flattened padded batch."""
        return torch.cat([row * self.longest + torch.arange(sum(lengths)) for row, lengths in enumerate(self.pairs)])

    @cached_property
    def tokens(self) -> Tensor:
        """[P * L] which token of the row is at each position of the flattened padded batch; padding repeats the row's first."""
        tokens = torch.zeros(len(self.pairs) * self.longest, dtype=torch.long)
        tokens[self.places] = torch.arange(len(self.places))
        return tokens

    def batch_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[P, 1, L, L] to be added to the scores of the padded batch: 0 where a query sees a key, else -inf.

        Made once per window and dtype. Padding sees what precedes it, so that no row of scores is without a key; no token sees
        padding.
        """
        key = (dtype, window)
        if key not in self._batch_masks:
            sees_PLL = torch.stack([_sees(lengths, self.longest, window) for lengths in self.pairs])
            mask_PLL = torch.zeros(sees_PLL.shape, dtype=dtype).masked_fill_(~sees_PLL, float("-inf"))
            self._batch_masks[key] = mask_PLL[:, None]
        return self._batch_masks[key]


def _sees(lengths: PairLengths, size: int, window: int | None) -> Tensor:
    """[L, L] whether a query sees a key, for a pair that is padded to a size."""
    index_L = torch.arange(size)
    is_rejected_L = index_L >= lengths.chosen_end
    is_chosen_L = (index_L >= lengths.prompt) & ~is_rejected_L
    sees_LL = (index_L <= index_L[:, None]) & ~(is_rejected_L[:, None] & is_chosen_L)
    if window is not None:
        position_L = torch.where(is_rejected_L, index_L - lengths.chosen, index_L)
        sees_LL &= position_L[:, None] - position_L < window
    return sees_LL


class UnsupportedModelError(ConfigurationError):
    """A model that would be trained wrongly. The message says why and what to do."""


class NotPackableError(Exception):
    """Packed pairs do not give what the model gives on plain sequences. The message says why."""


def attend_pairs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pairs: PairsLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of one layer, following the calling convention of transformers' AttentionInterface.

    Args:
        module: The layer's attention.
        query: [1, H, T, D].
        key: [1, G, T, D] with G a divisor of H.
        value: [1, G, T, D].
        attention_mask: Must be None.
        pairs: The row's layout, passed through the model's forward.
        scaling: Factor of the scores; None means 1/sqrt(D).
        sliding_window: Number of tokens that a token sees, itself included; None means all before it.
        softcap: Bound of the scores, by tanh; None means unbounded.
        s_aux: Attention sinks; must be None.
        position_bias: Must be None.
        **_: What else models pass, which does not change the result.

    Returns:
        [1, T, H, D], and None in place of the attention weights.

    Raises:
        UnsupportedModelError: The layer uses attention sinks, biases or a mask.
    """
    if s_aux is not None or position_bias is not None or attention_mask is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} uses attention sinks, biases or masks that packed pairs do not support"
        )
    pairs.windows.add(sliding_window)
    if query.device.type == "cpu" and pairs.is_short and softcap is None:
        return _attend_together(query, key, value, pairs=pairs, window=sliding_window, scaling=scaling), None

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attend(query, key, value, pairs=pairs, window=sliding_window, scaling=scaling, softcap=softcap)

    outputs: list[Tensor] = []
    sizes = [sum(lengths) for lengths in pairs.pairs]
    parts = zip(pairs.pairs, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    for lengths, query_of_pair, key_of_pair, value_of_pair in parts:
        end = lengths.chosen_end
        outputs.append(attend(query_of_pair[:, :, :end], key_of_pair[:, :, :end], value_of_pair[:, :, :end]))
        if lengths.rejected:
            key_of_branch = _without_chosen(key_of_pair, lengths)
            value_of_branch = _without_chosen(value_of_pair, lengths)
            outputs.append(attend(query_of_pair[:, :, end:], key_of_branch, value_of_branch))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend_together(
    query: Tensor, key: Tensor, value: Tensor, *, pairs: PairsLayout, window: int | None, scaling: float | None
) -> Tensor:
    """[1, T, H, D] attention of all pairs at once, each padded to the length of the longest."""

    def padded(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1).index_select(0, pairs.tokens)
        return rows.unflatten(0, (len(pairs.pairs), -1)).transpose(1, 2)

    mask = pairs.batch_mask(window, query.dtype)
    output_PHLD = _attend_by_products(padded(query), padded(key), padded(value), mask, scaling=scaling)
    return output_PHLD.transpose(1, 2).flatten(0, 1).index_select(0, pairs.places)[None]


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float | None) -> Tensor:
    """[P, H, L, D] attention as two batched products.

    With their backward pass they take half the time of a CPU's fused kernel where sequences are short, and up to SHORT tokens the
    weights that they store are few.
    """
    # Heads that share a key-value head are rows of one product.
    of_groups = (-1, query.shape[1] // key.shape[1])
    of_heads = (of_groups[1], query.shape[2])
    scores = query.unflatten(1, of_groups).flatten(2, 3) @ key.transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = at_least_fp32(scores.unflatten(2, of_heads) + mask[:, :, None]).softmax(dim=-1).to(value.dtype)
    return (weights.flatten(2, 3) @ value).unflatten(2, of_heads).flatten(1, 2)


def _without_chosen(states: Tensor, lengths: PairLengths) -> Tensor:
    return torch.cat([states[:, :, : lengths.prompt], states[:, :, lengths.chosen_end :]], dim=2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pairs: PairsLayout,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """[1, H, Q, D] causal attention of queries that are the last Q positions of the keys."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if window is not None and window >= num_keys:
        window = None
    causal = num_queries == num_keys and window is None and softcap is None
    mask = None if causal else pairs.mask(num_queries, num_keys, window, query.device)
    groups = query.shape[1] // key.shape[1]
    # Off the CPU, kernels that take a mask do not take fewer key-value heads than heads.
    grouped = groups > 1 and softcap is None and (mask is None or query.device.type == "cpu")
    if groups > 1 and not grouped:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is not None:
        return _softcapped(query, key, value, cast(Tensor, mask), scaling=scaling, softcap=softcap)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped)


def _softcapped(query: Tensor, key: Tensor, value: Tensor, mask_QK: Tensor, *, scaling: float | None, softcap: float) -> Tensor:
    """Attention whose scores are bounded to ±softcap, as in Gemma 2; no fused kernel supports it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh((query @ key.transpose(-1, -2)) * (scale / softcap))
    weights = at_least_fp32(scores).masked_fill(~mask_QK, float("-inf")).softmax(dim=-1)
    return weights.to(value.dtype) @ value


AttentionInterface.register(IMPLEMENTATION, attend_pairs)
