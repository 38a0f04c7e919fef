"""When a checkpoint is written."""

from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.store import RunStore


class Checkpoints:
    """The checkpoints of an attempt. All ranks call every method together."""

    def __init__(self, store: RunStore, schedule: Schedule, board: ProgressBoard, *, every_steps: int | None, saved: int) -> None:
        """Prepare to save.

        Args:
            store: Where to.
            schedule: Says which window a step belongs to.
            board: Shows it.
            every_steps: None saves at every boundary.
            saved: The step that has a checkpoint already; step 0 needs none, because it is the source model.
        """
        self._store = store
        self._schedule = schedule
        self._board = board
        self._every_steps = every_steps
        self._saved = saved

    def save_if_due(self, step: int) -> None:
        """Write a checkpoint if it is time for one. step: the steps done."""
        is_boundary = self._schedule.locate(step)[1] == 0
        if is_boundary if self._every_steps is None else step % self._every_steps == 0:
            self.save(step)

    def save(self, step: int) -> None:
        """Write a checkpoint, unless this step has one."""
        if step == self._saved:
            return
        window, _ = self._schedule.locate(step)
        with self._board.during("checkpoint"):
            checkpoint = self._store.save(step=step, version=window)
        if checkpoint is not None:
            self._board.wrote(checkpoint)
        self._saved = step
