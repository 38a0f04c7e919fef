"""Losses over pairs: pure functions of summed log-probs. Definitions and sources: METHODS."""

# B = pairs

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from torch.nn.functional import logsigmoid


class PairLoss(Protocol):
    """A loss of each pair by itself; a step's loss is their sum divided by the number of pairs of all ranks."""

    def __call__(
        self,
        policy_chosen_B: Tensor,
        policy_rejected_B: Tensor,
        reference_chosen_B: Tensor,
        reference_rejected_B: Tensor,
        *,
        beta: float,
        label_smoothing: float,
    ) -> Tensor:
        """[B] loss of each pair in nats. The tensors are summed log-probs of completions in nats, [B] each."""
        ...


def sigmoid(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """[B] DPO: -(1-ε) log σ(βh) - ε log σ(-βh), with h the difference of the log-ratios and ε the label smoothing.

    Sources: arXiv 2305.18290, eq. 7; the smoothed form is cDPO, https://ericmitchell.ai/cdpo.pdf, eq. 3.
    """
    scaled_B = beta * ((policy_chosen_B - reference_chosen_B) - (policy_rejected_B - reference_rejected_B))
    return -(1 - label_smoothing) * logsigmoid(scaled_B) - label_smoothing * logsigmoid(-scaled_B)


LOSSES: Mapping[str, PairLoss] = {"sigmoid": sigmoid}
"""By their names in `method.loss`."""
