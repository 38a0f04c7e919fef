"""Where figures go: the ledger's metrics.jsonl, Prometheus and trackers."""

import time
from collections.abc import Sequence
from typing import Literal

from spinrun_protocol.ledger import MetricsLine
from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.trainer.reporting.server import Gauges
from spinrun_worker.trainer.reporting.trackers import Follower
from spinrun_worker.trainer.reporting.trackers.tracker import figures


class Recorder:
    """Writes each line to the ledger, shows its figures as gauges, and offers it to the trackers' followers."""

    def __init__(self, ledger: LedgerWriter, gauges: Gauges, followers: Sequence[Follower] = ()) -> None:
        self._ledger = ledger
        self._gauges = gauges
        self._followers = followers

    def record(
        self,
        event: Literal["step", "window", "evaluation"],
        values: dict[str, float],
        *,
        window: int,
        step: int,
        version: int,
    ) -> None:
        """Record one line.

        Args:
            event: What the figures describe.
            values: The figures by name.
            window: Number of the window.
            step: Optimizer steps done.
            version: The newest version.

        Raises:
            LedgerUnavailableError: The volume refuses the line.
        """
        line = MetricsLine(
            event=event,
            attempt=self._ledger.attempt,
            time=time.time(),
            window=window,
            step=step,
            version=version,
            values=values,
        )
        self._ledger.append_metrics(line)
        self._gauges.set(figures(line))
        self._gauges.set({"window": float(window), "step_number": float(step), "version": float(version)})
        for follower in self._followers:
            follower.offer(line)
