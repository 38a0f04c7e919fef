"""Rollouts a window ahead of the trainer: they answer the next window's prompts while this one trains.

boundary:  publish version k -> collect what version k-1 answered to window k -> activate version k -> request
window k:  checkpoint -> score -> reference -> commit -> train | version k answers window k+1 and the held-out prompts
"""

from collections.abc import Callable

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.ranks.distributed import Kept
from spinrun_worker.trainer.sampling.draws import Collected
from spinrun_worker.trainer.sampling.exchange import Exchange, Request
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.store import RunStore


class Ahead:
    """Has the next window's prompts answered while a window trains. All ranks call every method together."""

    def __init__(self, exchange: Exchange, store: RunStore, schedule: Schedule) -> None:
        self._exchange = exchange
        self._store = store
        self._schedule = schedule
        self._requested: Kept[Request] | None = None
        """What the rollouts are answering since the last boundary; None: this attempt has asked nothing yet."""

    def answers(self, weights: Manifest, *, loaded: bool, begun: bool, meanwhile: Callable[[], None]) -> Kept[Collected]:
        """The answers to a window's prompts; see `window.SampleOrder`."""
        del begun  # an attempt that begins within a window has to ask for the next one's answers too
        answers = self._collect(weights, loaded=loaded)
        following = weights.version + 1
        is_wanted = following < self._schedule.windows and not self._store.has_window(following, weights)
        self._requested = self._exchange.request(weights, following if is_wanted else None)
        meanwhile()
        return answers or Kept()

    def finish(self, weights: Manifest, *, meanwhile: Callable[[], None]) -> None:
        """Have the last version evaluated."""
        self._collect(weights, loaded=True)
        requested = self._exchange.request(weights, None)
        meanwhile()
        self._exchange.collect(requested)

    def _collect(self, weights: Manifest, *, loaded: bool) -> Kept[Collected] | None:
        """Collect what was requested a window ago; an attempt that begins here requests now what is missing."""
        requested, self._requested = self._requested, None
        answers = self._exchange.collect(requested) if requested is not None else None
        window = weights.version
        if loaded:
            unevaluated = self._exchange.unevaluated(self._schedule.sampler(window))
            if unevaluated is not None:
                self._exchange.collect(self._exchange.request(unevaluated, None))
        elif answers is None:
            sampler = self._store.sampler(weights)
            answers = self._exchange.collect(self._exchange.request(sampler, window))
        return answers
