"""Weights & Biases: its service, or files of it for later where WANDB_MODE=offline says so."""

from pathlib import Path

import wandb

from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, figures, run_of, settings


class WandbTracker:
    """A run with the uid of ours, which all attempts share."""

    def __init__(self, record: RunRecord, ledger: Path, _: MetricsLine) -> None:
        """Begin the run or go on with it. Raises wandb.Error when the service refuses or does not answer."""
        run = run_of(record)
        spec = run.spec.telemetry.wandb
        assert spec is not None
        self._run = wandb.init(
            project=spec.project,
            entity=spec.entity,
            id=run.metadata.uid,
            name=run.metadata.name,
            resume="allow",
            config=settings(record),
            dir=ledger,
            # Its own wishes for the process are left out: our output is ours, and the code is in the image.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, save_code=False),
        )
        # Not wandb's own count of calls: an attempt repeats steps after its checkpoint, and wandb would drop what is repeated.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("evaluation/accuracy", step_metric="step", summary="max,last")
        self.place = str(Path(self._run.dir).parent if self._run.offline else self._run.url)

    def write(self, line: MetricsLine) -> None:
        """One row, with the steps done as its axis."""
        self._run.log({**figures(line), "step": line.step, "window": line.window, "attempt": line.attempt})

    def close(self, result: AttemptResult) -> None:
        """Send what is left. A run that did not end goes on with the next attempt."""
        if result == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if result == "complete" else 1)
