"""Model FLOPs utilization: what a step computes for the model's sake, against what the hardware could have computed meanwhile."""

from collections.abc import Sequence

from torch import nn

from spinrun_worker.records import Pair
from spinrun_worker.trainer.policy import Policy


class ModelFlops:
    """Floating-point operations of a policy's training, by the usual count of 6 for each weight and token.

    2 forward and 4 backward; attention's own, and what is computed a second time to save memory, count for nothing.
    Source: arXiv 2204.02311, appendix B.
    """

    def __init__(self, policy: Policy) -> None:
        head = policy.model.get_output_embeddings()
        tables = [module.weight for module in (policy.model.get_input_embeddings(), head) if isinstance(module, nn.Module)]
        looked_up = {id(table) for table in tables}
        self._body = sum(weight.numel() for weight in policy.parameters() if id(weight) not in looked_up)
        self._head = policy.config.vocab_size * policy.config.hidden_size

    def of_step(self, pairs: Sequence[Pair]) -> float:
        """Of one optimizer step on pairs whose prompts are computed once, and whose output matrix sees completions only."""
        tokens = sum(pair.num_tokens for pair in pairs)
        completions = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        return 6.0 * (self._body * tokens + self._head * completions)
