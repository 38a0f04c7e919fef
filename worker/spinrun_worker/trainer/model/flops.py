"""Model FLOPs utilization: the arithmetic that a step needs, relative to what the hardware could have done in that time."""

from collections.abc import Sequence

from torch import nn

from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.policy import Policy


class ModelFlops:
    """Floating-point operations of a policy's training, by the usual count of 6 per weight and token.

    2 forward and 4 backward, of which a weight that is not trained needs 2. Attention's own operations, and what is recomputed to
    save memory, are not counted. Source: arXiv 2204.02311, appendix B.
    """

    def __init__(self, policy: Policy) -> None:
        head = policy.model.get_output_embeddings()
        tables = [module.weight for module in (policy.model.get_input_embeddings(), head) if isinstance(module, nn.Module)]
        looked_up = {id(table) for table in tables}
        # Without what sees images, which no token passes through.
        body = [weight for weight in policy.model.get_decoder().parameters() if id(weight) not in looked_up]
        self._num_tokens = policy.num_tokens
        self._body = sum(weight.numel() * _operations(weight.requires_grad) for weight in body)
        is_trained = any(table.requires_grad for table in tables)
        self._head = policy.config.vocab_size * policy.config.hidden_size * _operations(is_trained)

    def of_step(self, pairs: Sequence[Pair]) -> float:
        """FLOPs of one optimizer step on pairs, whose prompts are computed once if they are packed, and whose output matrix sees
        completions only."""
        tokens = sum(map(self._num_tokens, pairs))
        completions = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        return float(self._body * tokens + self._head * completions)


def _operations(is_trained: bool) -> int:
    """Operations per weight and token."""
    return 6 if is_trained else 4
