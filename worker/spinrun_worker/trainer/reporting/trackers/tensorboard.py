"""TensorBoard: event files in a folder."""

from pathlib import Path

import yaml
from tensorboardX import SummaryWriter

from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, figures, folder_of, run_of, settings


class TensorboardTracker:
    """A file of events for each attempt; TensorBoard reads those of a folder as one run."""

    def __init__(self, record: RunRecord, ledger: Path, first: MetricsLine) -> None:
        """Begin a file.

        Args:
            record: How the run was made.
            ledger: The run's folder.
            first: The first line to show.

        Raises:
            OSError: The folder cannot be written to.
        """
        run = run_of(record)
        assert run.spec.telemetry.tensorboard is not None
        shared = run.spec.telemetry.tensorboard.directory
        self.place = str(ledger / "tensorboard" if shared is None else folder_of(run, Path(shared)))
        # What an earlier attempt wrote about the steps that this one repeats is hidden. A step's line repeats that very step; any
        # other first line describes the steps before it.
        repeated_from = first.step if first.event == "step" else first.step + 1
        # The writer's own names do not distinguish attempts within the same second.
        suffix = f".{first.attempt:04}"
        self._writer = SummaryWriter(logdir=self.place, purge_step=repeated_from, filename_suffix=suffix)
        text = yaml.safe_dump(settings(record), sort_keys=False, allow_unicode=True)
        self._writer.add_text("settings", f"```yaml\n{text}```", first.step, walltime=first.time)

    def write(self, line: MetricsLine) -> None:
        """Write a scalar for each figure, over the steps done."""
        for name, value in figures(line).items():
            self._writer.add_scalar(name, value, line.step, walltime=line.time)
        self._writer.flush()

    def close(self, _: AttemptResult) -> None:
        """Close the file, which has no place for how the attempt ended."""
        self._writer.close()
