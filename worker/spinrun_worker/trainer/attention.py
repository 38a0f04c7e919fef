"""Attention over packed pairs, in a form that every transformers model takes (`attn_implementation="spinrun_pairs"`).

Each pair is two causal attentions: prompt and chosen over themselves; rejected over the prompt and itself. What a token may
not see is never computed: no mask over the row, no padding, and about half the work where completions are long. On a CPU a
dense mask over a row of 1000 tokens takes eight times as long, pairs padded into a batch a quarter longer.
"""

# H = heads, G = key-value heads, T = packed tokens, Q = queries, K = keys, D = head size

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from spinrun_worker.trainer.logprobs import at_least_fp32

IMPLEMENTATION = "spinrun_pairs"


class PairLengths(NamedTuple):
    """Tokens of the three parts of a pair."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def chosen_end(self) -> int:
        """Tokens up to the end of the chosen completion."""
        return self.prompt + self.chosen


@dataclass(frozen=True)
class PairsLayout:
    """Where the pairs lie in a row of tokens. One serves all layers of a forward pass."""

    pairs: tuple[PairLengths, ...]
    windows: set[int | None] = field(default_factory=set[int | None])
    """Sliding windows that layers have asked for so far; None is full attention."""
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict[tuple[int, int, int | None], Tensor])

    def mask(self, num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
        """[Q, K] true where a query sees a key. The queries are the last positions of the keys; made once a shape."""
        shape = (num_queries, num_keys, window)
        if shape not in self._masks:
            query_Q1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
            key_K = torch.arange(num_keys, device=device)
            sees_QK = key_K <= query_Q1
            self._masks[shape] = sees_QK if window is None else sees_QK & (query_Q1 - key_K < window)
        return self._masks[shape]


class UnsupportedModelError(ValueError):
    """A model that packed pairs would train wrongly. The message says what about it and what to do."""


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
    """Attention of one layer, by the calling convention of transformers' AttentionInterface.

    query: [1, H, T, D]; key, value: [1, G, T, D] with G a divisor of H. pairs: passed through the model's forward. scaling: of
    the scores, 1/sqrt(D) if None. softcap: bound of the scores by tanh. Returns ([1, T, H, D], None).
    Raises UnsupportedModelError for attention sinks and biases (s_aux, position_bias).
    """
    if s_aux is not None or position_bias is not None or attention_mask is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} uses attention sinks, biases or masks that packed pairs do not support"
        )
    pairs.windows.add(sliding_window)

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
    """Attention whose scores are bounded to ±softcap, as in Gemma 2; no fused kernel has it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh((query @ key.transpose(-1, -2)) * (scale / softcap))
    weights = at_least_fp32(scores).masked_fill(~mask_QK, float("-inf")).softmax(dim=-1)
    return weights.to(value.dtype) @ value


AttentionInterface.register(IMPLEMENTATION, attend_pairs)
