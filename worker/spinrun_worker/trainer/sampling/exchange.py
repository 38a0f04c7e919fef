"""The exchange with the rollouts: which version they serve, what they are asked, and what they have answered."""

from collections.abc import Sequence
from dataclasses import dataclass

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.rank0 import Rank0Parts
from spinrun_worker.trainer.ranks.distributed import Distributed, Kept, collective
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.sampling.draws import Collected, PendingWindow
from spinrun_worker.trainer.sampling.requests import PendingAnswers


@dataclass(frozen=True)
class Request:
    """What the rollouts are answering, and with which weights."""

    weights: Manifest
    window: PendingWindow | None
    """A window's prompts."""
    evaluation: PendingAnswers | None
    """The held-out prompts."""


class Exchange:
    """Requests of all ranks to the rollouts, made by rank 0."""

    def __init__(self, ranks: Distributed, parts: Rank0Parts, board: ProgressBoard) -> None:
        """Open the exchange. parts: on rank 0 alone."""
        self.ranks = ranks
        self._parts = parts
        self._board = board

    @collective
    def request(self, weights: Manifest, window: int | None) -> Kept[Request]:
        """Bring a version to the rollouts, and have it begin to answer the prompts of a window, if any, and the held-out ones, if
        it is their turn: both at once, so that vLLM's batch stays full to the end."""
        requests, base = self._parts.requests, self._parts.pairs.base
        requests.activate(weights)
        if base is not None and weights.version == 0:
            with self._board.during("generate"):
                base.collect(weights, lambda prompts: requests.once(prompts, weights).wait())
        samples = None if window is None else self._parts.draws.begin(window, weights)
        held_out = self._parts.evaluations.missing(weights)
        evaluation = requests.greedily(held_out, weights, shown=samples is None) if held_out else None
        return Kept(Request(weights, samples, evaluation))

    @collective
    def collect(self, requested: Kept[Request]) -> Kept[Collected] | None:
        """Wait for what was requested, and write the evaluation down.

        Returns:
            The answers to the window's prompts; None where none were requested.
        """
        request, collected = requested.value, None
        if request.window is not None:
            with self._board.during("generate"):
                collected = Kept(request.window.wait())
        if self._parts.evaluations.is_due(request.weights.version):
            with self._board.during("evaluate"):
                self._parts.evaluations.record(request.weights, request.evaluation.wait() if request.evaluation else None)
        return collected

    @collective
    def unevaluated(self, version: int) -> Manifest | None:
        """The weights of a version, if the ledger holds them and lacks their evaluation, whose turn it was."""
        return self._parts.evaluations.unevaluated(version)

    @collective
    def served_versions(self) -> Sequence[int]:
        """For each agent that there is, the version that it serves; -1 for one that serves none or does not answer."""
        return self._parts.rollouts.served_versions()

    def cancel(self) -> None:
        """Give up what was requested: the trainer does not continue. Not collective: ranks may differ in where they are."""
        if self.ranks.is_rank0:
            self._parts.rollouts.cancel()
