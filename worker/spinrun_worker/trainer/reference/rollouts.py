"""The rollouts' own log-probs as reference, where they serve the very version that a window is compared with."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from spinrun_protocol.ledger import Manifest
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.learner import StepResult
from spinrun_worker.trainer.reference.passes import ReferencePasses, StepPairs, pairs_of, with_reference

logger = logging.getLogger(__name__)


class RolloutsReference:
    """Takes the rollouts' log-probs for all steps but the first, as long as they are near the trainer's own for that one."""

    def __init__(self, passes: ReferencePasses, *, max_mismatch: float, is_rank0: bool) -> None:
        """Prepare to compare.

        Args:
            passes: Computes the log-probs where those of the rollouts are not taken.
            max_mismatch: Mean absolute difference, in nats per token, up to which they are.
            is_rank0: Whether this rank says so in the log.
        """
        self._passes = passes
        self._max_mismatch = max_mismatch
        self._is_rank0 = is_rank0

    def before_first_step(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """The steps as they are: with log-probs of the rollouts."""
        return [*steps]

    def after_first_step(
        self, steps: Sequence[StepPairs], first: StepResult, weights: Manifest
    ) -> tuple[list[StepPairs], StepResult]:
        """All steps with their reference, and the first one's result with how far rollouts and trainer are apart.

        Where that is too far, the trainer computes the later steps' log-probs with the reference in the policy's place: the
        policy has moved by now. weights: the policy before the first step.
        """
        mismatch = logprob_mismatch(pairs_of(steps[0]), first.logprobs)
        first = replace(first, figures={**first.figures, "logps/mismatch": mismatch})
        later = steps[1:]
        if mismatch > self._max_mismatch:
            if self._is_rank0:
                logger.warning(
                    "rollouts and trainer differ by %.4f nats a token in version %d, more than spec.method.maxMismatch (%g): "
                    "the trainer computes this window's reference",
                    mismatch,
                    weights.version,
                    self._max_mismatch,
                )
            later = self._passes.by_version(later, weights)
        return [with_reference(steps[0], first.logprobs), *later], first

    def without_first_step(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """All steps with their reference where the first one could not be taken: nothing then says how near the rollouts are."""
        return self._passes.by_policy(steps)


def logprob_mismatch(pairs: Sequence[Pair], logprobs: Sequence[tuple[float, float]]) -> float:
    """How far the pairs' own log-probs, which are the rollouts', are from others of the same answers.

    Returns:
        The mean absolute difference in nats per token; infinite where a pair has none.
    """
    difference, num_tokens = 0.0, 0
    for pair, (chosen, rejected) in zip(pairs, logprobs, strict=True):
        if pair.reference_chosen is None or pair.reference_rejected is None:
            return math.inf
        difference += abs(pair.reference_chosen - chosen) + abs(pair.reference_rejected - rejected)
        num_tokens += len(pair.chosen) + len(pair.rejected)
    return difference / num_tokens if math.isfinite(difference) else math.inf
