"""One attempt of a run: windows until the last, the same steps on every rank.

    boundary:  publish version k
    window k:  answers -> pairs -> reference -> commit -> train (window.py)
    end:       publish and evaluate the last version

The number of steps done says where a run is; nothing else is kept between windows but the model, the optimizer and the ledger.
"""

from collections.abc import Callable
from functools import partial

from spinrun_protocol.ledger import Manifest
from spinrun_worker.errors import Preempted
from spinrun_worker.trainer.model.memory import return_freed_memory
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.sampling.exchange import Exchange
from spinrun_worker.trainer.storage.store import RunStore
from spinrun_worker.trainer.window import WindowTrainer


class Training:
    """Runs windows from a step to the end. All ranks run it."""

    def __init__(
        self,
        windows: WindowTrainer,
        exchange: Exchange,
        store: RunStore,
        board: ProgressBoard,
        export: Callable[[Manifest], Manifest] | None,
    ) -> None:
        """Put the parts together. export: makes what is wanted of the last version; None: nothing."""
        self.windows = windows
        self.exchange = exchange
        self.store = store
        self.board = board
        self.export = export

    def run(self) -> None:
        """Continue until the last version is published and evaluated.

        Raises:
            Preempted: The run was asked to stop; it has written a checkpoint.
        """
        schedule, stepper = self.windows.schedule, self.windows.stepper
        try:
            while True:
                number, done = schedule.locate(stepper.done)
                self.board.update(window=number, step=stepper.done)
                weights = self.store.published(number) if done else self.publish(number, stepper.done)
                if number == schedule.windows:
                    break
                seconds = self.windows.train(weights, done, meanwhile=partial(self.save_and_prune, weights))
                self.board.update(eta_seconds=(schedule.windows - number - 1) * seconds)
            self.finish(weights)
        except BaseException as error:
            self.exchange.cancel()
            if isinstance(error, Preempted):
                self.windows.checkpoints.save(stepper.done)
            raise
        self.board.update(activity="finished", eta_seconds=0.0)

    def publish(self, version: int, step: int) -> Manifest:
        """Publish the weights of this moment."""
        with self.board.during("publish"):
            # The page cache takes what the steps have just used, instead of memory that the kernel must first find: on a
            # virtual machine that had given it back to its host, writing then takes several times as long.
            return_freed_memory()
            weights = self.store.publish(version=version, step=step)
        self.board.wrote(weights)
        return weights

    def save_and_prune(self, weights: Manifest) -> None:
        """At a boundary, while the rollouts answer: write the checkpoint, mix the reference, delete what nobody needs."""
        done = self.windows.stepper.done
        self.windows.checkpoints.save_if_due(done)
        if self.windows.schedule.first_step(weights.version) == done:  # else its reference is there, and the policy has moved on
            self.windows.passes.mix(weights)
        self.store.collect_garbage(newest=weights.version, best=self.board.now.best, acknowledged=self.exchange.served_versions())
        return_freed_memory()  # beside it vLLM now generates, often on the same machine

    def finish(self, weights: Manifest) -> None:
        """Evaluate the last version, and make of it what is wanted beside it."""
        self.windows.order.finish(weights, meanwhile=partial(self.save_and_prune, weights))
        if self.export is not None:
            with self.board.during("publish"):
                exported = self.export(weights)
            self.board.wrote(exported)
