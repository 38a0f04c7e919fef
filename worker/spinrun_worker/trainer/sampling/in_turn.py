"""Rollouts and trainer in turn: each window is answered by the weights that it begins with, while the trainer waits.

boundary:  publish version k -> activate -> request
window k:  generate, evaluate | checkpoint -> collect -> score -> reference -> commit -> train
"""

from collections.abc import Callable

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.ranks.distributed import Kept
from spinrun_worker.trainer.sampling.draws import Collected
from spinrun_worker.trainer.sampling.exchange import Exchange


class InTurn:
    """Has a window's prompts answered at its beginning. All ranks call every method together."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def answers(self, weights: Manifest, *, loaded: bool, begun: bool, meanwhile: Callable[[], None]) -> Kept[Collected]:
        """The answers to a window's prompts; see `window.SampleOrder`."""
        if loaded and begun:
            return Kept()  # an earlier attempt has done all that belongs to the boundary
        requested = self._exchange.request(weights, None if loaded else weights.version)
        meanwhile()
        return self._exchange.collect(requested) or Kept()

    def finish(self, weights: Manifest, *, meanwhile: Callable[[], None]) -> None:
        """Have the last version evaluated."""
        requested = self._exchange.request(weights, None)
        meanwhile()
        self._exchange.collect(requested)
