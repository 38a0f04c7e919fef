"""Forward passes that give pairs their log-probs under a reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

from spinrun_protocol.ledger import Manifest
from spinrun_worker.errors import RunError
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.reference.mixture import mix_reference
from spinrun_worker.trainer.reference.older import in_place_of_policy
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.storage.store import RunStore

StepPairs = Mapping[int, Sequence[Pair]]
"""Pairs of a step, by the window that they come from."""


class ReferencePasses:
    """Computes log-probs of steps' pairs as the steps will train on them. All ranks call every method together."""

    def __init__(self, learner: Learner, store: RunStore, board: ProgressBoard) -> None:
        self._learner = learner
        self._store = store
        self._board = board

    def by_policy(self, steps: Sequence[StepPairs]) -> list[StepPairs]:
        """The pairs of steps with log-probs of the weights that the model holds now."""
        with self._board.during("reference"):
            return [self._pass(step) for step in steps]

    def by_version(self, steps: Sequence[StepPairs], weights: Manifest) -> list[StepPairs]:
        """The pairs of steps with log-probs of a published version, which is read back into the policy's place.

        Raises:
            TornError: On all ranks, when a file is not what the manifest says.
        """
        store = self._store
        with self._board.during("reference"), in_place_of_policy(store.ledger, store.ranks, store.publication.tensors(), weights):
            return [self._pass(step) for step in steps]

    def mix(self, weights: Manifest) -> None:
        """Where the window that begins with these weights has a mixture as reference, have it in the ledger. The model must hold
        these weights.

        Raises:
            TornError: On all ranks, when the reference before is not what its manifest says.
        """
        share, before = self._learner.method.reference_mixture, self._store.ingredients(weights)
        if share is None or before is None:
            return
        with self._board.during("reference"):
            mixture = mix_reference(self._store, weights, before, share=share)
        self._board.wrote(mixture)

    def _pass(self, step: StepPairs) -> StepPairs:
        pairs = pairs_of(step)
        return with_reference(step, self._learner.reference_logprobs(pairs)) if pairs else step


def pairs_of(step: StepPairs) -> list[Pair]:
    """The pairs of a step in the order in which it trains on them."""
    return [*chain(*step.values())]


def without_reference(step: StepPairs) -> StepPairs:
    """The pairs of a step with no log-probs of any reference."""
    return {window: [pair.without_reference() for pair in share] for window, share in step.items()}


def with_reference(step: StepPairs, logprobs: Sequence[tuple[float, float]]) -> StepPairs:
    """The pairs of a step with their (chosen, rejected) log-probs under the reference, in order.

    Raises:
        RunError: A log-prob is NaN or infinite.
    """
    pairs = pairs_of(step)
    strange = [pair.prompt_id for pair, values in zip(pairs, logprobs, strict=True) if not all(map(math.isfinite, values))]
    if strange:
        raise RunError(
            f"the reference gives {len(strange)} pairs, such as one of prompt {strange[0]}, non-finite log-probs (NaN or inf): "
            "its weights are broken; lower trainer.learningRate"
        )
    with_values = (
        replace(pair, reference_chosen=chosen, reference_rejected=rejected)
        for pair, (chosen, rejected) in zip(pairs, logprobs, strict=True)
    )
    return {window: [*islice(with_values, len(share))] for window, share in step.items()}
