"""Log-probs of completions from hidden states, without ever holding the logits of all of them."""

# C = completion tokens, S = completions, D = hidden size, V = vocabulary

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

LogitTransform = Callable[[Tensor], Tensor]

MAX_LOGITS = 1 << 25
"""Most logits at once: 128 MiB in fp32."""


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is when it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """What the model does to its logits after the output matrix.

    Knows final_logit_softcapping (Gemma), logits_scaling (Granite, a divisor) and logit_scale (Cohere, a factor).
    """
    softcap = cast(float | None, getattr(config, "final_logit_softcapping", None))
    divisor = cast(float | None, getattr(config, "logits_scaling", None))
    factor = cast(float | None, getattr(config, "logit_scale", None))

    def transform(logits: Tensor) -> Tensor:
        if divisor is not None:
            logits = logits / divisor
        if factor is not None:
            logits = logits * factor
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits

    return transform


def token_logprobs(
    hidden_CD: Tensor,
    target_C: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    vocabulary_size: int,
    transform: LogitTransform,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """[C] log-prob of each target in nats at temperature 1, fp32 (or the head's type if that is wider).

    head: the output matrix, [*, D] -> [*, V]. At most max_logits logits exist at a time, forward and backward: all chunks but the
    last, whose backward comes first, are computed a second time in the backward pass.
    """

    def logprobs(hidden: Tensor, target: Tensor) -> Tensor:
        logits = transform(at_least_fp32(head(hidden)))
        return -cross_entropy(logits, target, reduction="none")

    chunk = max(1, max_logits // vocabulary_size)
    hidden_chunks, target_chunks = hidden_CD.split(chunk), target_C.split(chunk)
    *earlier, last = zip(hidden_chunks, target_chunks, strict=True)
    recomputed = [cast(Tensor, checkpoint(logprobs, *inputs, use_reentrant=False)) for inputs in earlier]
    return torch.cat([*recomputed, logprobs(*last)])


def sum_by_completion(logprobs_C: Tensor, lengths_S: Tensor) -> Tensor:
    """[S] sums over consecutive completions of the given lengths."""
    return torch.segment_reduce(logprobs_C, "sum", lengths=lengths_S)
