"""The policy as its own reference: at a window's beginning it is the version that the window is compared with."""

from collections.abc import Sequence

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.model.learner import StepResult
from spinrun_worker.trainer.reference.passes import ReferencePasses, StepPairs


class OwnReference:
    """The first step needs no pass for its reference: its own forward pass is one. The later steps have one before it."""

    def __init__(self, passes: ReferencePasses) -> None:
        self._passes = passes

    def before_first_step(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """The steps with the log-probs that must be known while the policy has not moved yet: those of the later steps."""
        return [steps[0], *self._passes.by_policy(steps[1:])]

    def after_first_step(
        self, steps: Sequence[StepPairs], first: StepResult, weights: Manifest
    ) -> tuple[list[StepPairs], StepResult]:
        """All steps with their reference, and the first one's result. weights: the policy before it."""
        del weights
        return [self._passes.of_first_step(steps[0], first), *steps[1:]], first

    def without_first_step(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """All steps with their reference where the first one could not be taken: the policy is still as it was."""
        return [*self._passes.by_policy(steps[:1]), *steps[1:]]
