"""Log-probs of completions from hidden states, without ever holding all of their logits at once."""

# C = completion tokens, S = completions, D = hidden size, V = vocabulary, K = tokens to draw from

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

LogitTransform = Callable[[Tensor], Tensor]

MAX_LOGITS = 1 << 25
"""Maximum number of logits at once: 128 MiB in fp32."""


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is if its dtype is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """What the model does to its logits after the output matrix.

    Supports final_logit_softcapping (Gemma), logits_scaling (Granite, a divisor) and logit_scale (Cohere, a factor).
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
    temperature: float = 1.0,
    noise_CK: Tensor | None = None,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Log-prob of each target.

    At most max_logits logits exist at a time, forward and backward: all chunks are recomputed in the backward pass, except the
    last one, whose backward pass comes first.

    Args:
        hidden_CD: [C, D] hidden states that predict the targets.
        target_C: [C] token ids.
        head: The output matrix, [*, D] -> [*, V].
        vocabulary_size: V.
        transform: What follows the output matrix.
        temperature: What logits are divided by after that.
        noise_CK: [C, K] noise for `contrasts`, where these are wanted, too; they copy a chunk's logits.
        max_logits: Maximum number of logits at once.

    Returns:
        [C] in nats, fp32 (or the head's dtype if that is wider). With noise_CK, [C, 2]: log-probs and contrasts.
    """

    def logprobs(hidden: Tensor, target: Tensor, *noise: Tensor) -> Tensor:
        logits = transform(at_least_fp32(head(hidden)))
        if temperature != 1:
            logits = logits / temperature
        of_target = -cross_entropy(logits, target, reduction="none")
        return torch.stack([of_target, contrasts(logits, target, *noise)], dim=1) if noise else of_target

    chunk = max(1, max_logits // vocabulary_size)
    inputs_C = (hidden_CD, target_C) if noise_CK is None else (hidden_CD, target_C, noise_CK)
    *earlier, last = zip(*(tensor.split(chunk) for tensor in inputs_C), strict=True)
    recomputed = [cast(Tensor, checkpoint(logprobs, *inputs, use_reentrant=False)) for inputs in earlier]
    return torch.cat([*recomputed, logprobs(*last)])


def contrasts(logits_CV: Tensor, target_C: Tensor, noise_CK: Tensor) -> Tensor:
    """[C] log σ(s* - s) in nats, where s is the target's logit and s* that of another token, drawn from the K likeliest others.

    Source: the cringe loss, arXiv 2211.05826.

    Args:
        logits_CV: [C, V] logits.
        target_C: [C] token ids.
        noise_CK: [C, K] standard Gumbel noise, which decides the draw: the argmax of logit plus noise is distributed as the
            model's probabilities among the K.
    """
    others_CV = logits_CV.scatter(1, target_C[:, None], -torch.inf)
    likeliest_CK = others_CV.topk(noise_CK.shape[1], dim=1).values
    drawn_C1 = (likeliest_CK + noise_CK).argmax(dim=1, keepdim=True)
    return logsigmoid(likeliest_CK.gather(1, drawn_C1) - logits_CV.gather(1, target_C[:, None]))[:, 0]


def sum_by_completion(values_C: Tensor, lengths_S: Tensor, weight_C: Tensor | None = None) -> Tensor:
    """Sums over consecutive completions.

    Args:
        values_C: [C, ...] values of all completion tokens.
        lengths_S: [S] tokens of each completion.
        weight_C: [C] weights; None means 1.

    Returns:
        [S, ...] sums.
    """
    if weight_C is not None:
        weight_C = weight_C.to(values_C)
        values_C = values_C * (weight_C if values_C.dim() == 1 else weight_C[:, None])
    return torch.segment_reduce(values_C, "sum", lengths=lengths_S)
