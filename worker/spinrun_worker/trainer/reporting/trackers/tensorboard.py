"""TensorBoard: event files in a folder."""

from pathlib import Path

import yaml
from tensorboardX import SummaryWriter

from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, figures, folder_of, run_of, settings


class TensorboardTracker:
    """A file of events for each attempt; TensorBoard reads those of a folder as one run."""

    def __init__(self, record: RunRecord, ledger: Path, first: MetricsLine) -> None:
        """Raises OSError when the folder cannot be written to."""
        run = run_of(record)
        assert run.spec.telemetry.tensorboard is not None
        shared = run.spec.telemetry.tensorboard.directory
        self.place = str(ledger / "tensorboard" if shared is None else folder_of(run, Path(shared)))
        # What an earlier attempt said of the steps that this one repeats is hidden. Only a line of a step begins anew with its
        # step; what else comes first is said of the steps before.
        repeated_from = first.step if first.event == "step" else first.step + 1
        # The writer's own names tell no attempts of a second apart.
        suffix = f".{first.attempt:04}"
        self._writer = SummaryWriter(logdir=self.place, purge_step=repeated_from, filename_suffix=suffix)
        text = yaml.safe_dump(settings(record), sort_keys=False, allow_unicode=True)
        self._writer.add_text("settings", f"```yaml\n{text}```", first.step, walltime=first.time)

    def write(self, line: MetricsLine) -> None:
        """A scalar for each figure, over the steps done."""
        for name, value in figures(line).items():
            self._writer.add_scalar(name, value, line.step, walltime=line.time)
        self._writer.flush()

    def close(self, _: AttemptResult) -> None:
        """Close the file; how the attempt ended has no place in it."""
        self._writer.close()
