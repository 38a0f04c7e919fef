"""Where figures go: the ledger's metrics.jsonl and Prometheus."""

import time
from typing import Literal

from spinrun_api.ledger import MetricsLine
from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.trainer.progress import Gauges


class Recorder:
    """Writes each line to the ledger and shows its figures as gauges."""

    def __init__(self, ledger: LedgerWriter, gauges: Gauges) -> None:
        self._ledger = ledger
        self._gauges = gauges

    def record(
        self,
        event: Literal["step", "window", "evaluation"],
        values: dict[str, float],
        *,
        window: int,
        step: int,
        version: int,
    ) -> None:
        """Write one line. Raises LedgerUnavailableError when the volume refuses it."""
        self._ledger.append_metrics(
            MetricsLine(
                event=event,
                attempt=self._ledger.attempt,
                time=time.time(),
                window=window,
                step=step,
                version=version,
                values=values,
            )
        )
        prefix = "" if event == "step" else f"{event}/"
        self._gauges.set({prefix + name: value for name, value in values.items()})
        self._gauges.set({"window": float(window), "step_number": float(step), "version": float(version)})
