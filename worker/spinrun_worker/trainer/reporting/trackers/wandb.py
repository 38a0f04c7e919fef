"""Weights & Biases: its service, or with WANDB_MODE=offline its files, for later."""

from pathlib import Path

import wandb

from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, figures, run_of, settings


class WandbTracker:
    """A run with our run's uid as its id, which all attempts share."""

    def __init__(self, record: RunRecord, ledger: Path, _: MetricsLine) -> None:
        """Begin the run or resume it.

        Args:
            record: How the run was made.
            ledger: The run's folder.

        Raises:
            wandb.Error: The service refuses or does not answer.
        """
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
            # Without what it would do to the process: our output is ours, and the code is in the image.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, save_code=False),
        )
        # Not wandb's own count of calls: an attempt repeats the steps after its checkpoint, and wandb would drop repetitions.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("evaluation/accuracy", step_metric="step", summary="max,last")
        self.place = str(Path(self._run.dir).parent if self._run.offline else self._run.url)

    def write(self, line: MetricsLine) -> None:
        """Log one row, with the steps done as its axis."""
        self._run.log({**figures(line), "step": line.step, "window": line.window, "attempt": line.attempt})

    def close(self, result: AttemptResult) -> None:
        """Send the rest. The next attempt continues a run that has not completed."""
        if result == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if result == "complete" else 1)
