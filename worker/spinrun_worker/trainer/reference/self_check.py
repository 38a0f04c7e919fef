"""A check that costs nothing: what a window's first loss must be."""

from spinrun_worker.errors import RunError
from spinrun_worker.trainer.model.learner import StepResult

TOLERANCE = 1e-3
"""Nats, or a share of a loss above one. The reference pass and the first step run the same forward; they differ only by
floating-point order, where an attempt with another number of ranks packs the pairs in another way."""


def self_check(first: StepResult) -> None:
    """The first step of a window that is compared with the version it begins with starts at its own reference, where a loss has
    a value known beforehand: ln 2 for sigmoid.

    Raises:
        RunError: It has another: the reference of the loss is then not the policy that was published.
    """
    got, want = first.figures["loss"], first.loss_at_reference
    assert want is not None, "the loss compares with a reference, or nobody asks for this check"
    if abs(got - want) > TOLERANCE * max(1.0, abs(want)):
        raise RunError(
            f"self-check failed: the first step of a window must have the loss at its reference, {want:.6f}, got {got:.6f}. "
            "The weights changed between the reference pass and the step; please report this with the run's ledger"
        )
