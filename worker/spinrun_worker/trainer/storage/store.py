"""How this attempt's model gets to the ledger and back."""

import logging
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spinrun_api.status import Best
from spinrun_protocol.ledger import Manifest
from spinrun_worker.ledger import LedgerWriter, TornError, collect
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.reference.older import in_place_of_policy
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.checkpoint import TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint
from spinrun_worker.trainer.storage.lineage import check_window, reference_of, sampler_of
from spinrun_worker.trainer.storage.publish import publish

logger = logging.getLogger(__name__)


class Storage:
    """The ledger from the point of view of the run of windows. All ranks call every method together."""

    def __init__(
        self,
        ledger: LedgerWriter,
        ranks: Distributed,
        schedule: Schedule,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        tensors: Callable[[], Mapping[str, Tensor]],
        dtype: torch.dtype,
        assets: Mapping[str, bytes],
        file: str | None,
        keep_checkpoints: int,
        acknowledged: Callable[[], Collection[int]],
    ) -> None:
        """Put the parts together.

        Args:
            ledger: The ledger.
            ranks: The ranks.
            schedule: The run's windows.
            model: The model.
            optimizer: The optimizer.
            tensors: Returns the policy's parameters by their Hugging Face names.
            dtype: Dtype of published weights.
            assets: The other files of a version.
            file: Name of the one file that holds a version's tensors; None means as many as it takes.
            keep_checkpoints: How many of the newest checkpoints stay.
            acknowledged: On rank 0, returns the version that each live agent serves.
        """
        self.ledger = ledger
        self.ranks = ranks
        self.schedule = schedule
        self.model = model
        self.optimizer = optimizer
        self.tensors = tensors
        self.dtype = dtype
        self.assets = assets
        self.file = file
        self.keep_checkpoints = keep_checkpoints
        self.acknowledged = acknowledged

    def publish(self, *, version: int, step: int) -> Manifest:
        """Write the current weights as a version, and return its manifest."""
        return publish(
            self.ledger,
            self.ranks,
            self.tensors(),
            version=version,
            step=step,
            dtype=self.dtype,
            assets=self.assets,
            file=self.file,
        )

    def save(self, *, step: int, version: int) -> Manifest | None:
        """Write a checkpoint, and return its manifest.

        None is written, and None returned, while no step has had a pair: the model is then still the source.
        """
        if not self.optimizer.state:
            return None
        return save_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, TrainerState(step=step, version=version))

    def reference(self, weights: Manifest) -> Manifest:
        """The version that the pairs of a window are compared with.

        Args:
            weights: The version that the window begins with.

        Raises:
            TornError: On all ranks, when the ledger does not hold that version as earlier windows used it.
        """

        def find() -> Manifest:
            wanted = reference_of(self.ledger, self.schedule, weights)
            if wanted.version == weights.version:
                return weights
            found = self.ledger.verify("weights", wanted.version, hashes=False)
            if found.digest != wanted.digest:
                raise TornError(
                    f"{self.ledger.layout.weights(wanted.version)} holds other weights than those that window {wanted.version} "
                    "began with: it cannot be the reference of later windows"
                )
            return found

        return self.ranks.from_rank0(find)

    def sampler(self, weights: Manifest) -> Manifest:
        """The version that answers the prompts of a window.

        Args:
            weights: The version that the window begins with.

        Raises:
            TornError: On all ranks, when the ledger does not hold it.
        """
        return self.ranks.from_rank0(lambda: sampler_of(self.ledger, self.schedule, weights))

    @contextmanager
    def in_place_of_policy(self, weights: Manifest) -> Generator[None]:
        """Put a published version into the model for the duration of the block, then the policy back, bit for bit.

        Raises:
            TornError: On all ranks, when a file is not what the manifest says.
        """
        with in_place_of_policy(self.ledger, self.ranks, self.tensors(), weights):
            yield

    def resume(self) -> int:
        """Load the newest checkpoint from which the run can resume; returns the steps done, 0 without one."""
        while (checkpoint := latest_checkpoint(self.ledger, self.ranks)) is not None:
            if self._can_resume(checkpoint.step):
                state = load_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, checkpoint)
                logger.info("resuming from the checkpoint at step %d", state.step)
                return state.step
            self._delete_checkpoint(checkpoint.step)
        return 0

    def collect_garbage(self, *, newest: int, best: Best | None) -> None:
        """Delete checkpoints and versions that are no longer needed.

        The best version stays, and so do references and what the current window was sampled from. Windows are never deleted:
        replay reads them.

        Args:
            newest: The version that agents are told to serve.
            best: The best version so far.
        """

        def collect_on_rank0() -> None:
            gone = collect(
                self.ledger,
                keep_checkpoints=self.keep_checkpoints,
                acknowledged=self.acknowledged(),
                newest=newest,
                needed={best.version} if best else set[int](),
                read_by=lambda window: (self.schedule.reference(window), self.schedule.sampler(window)),
            )
            if gone.weights or gone.checkpoints:
                logger.info("deleted versions %s and checkpoints %s", list(gone.weights), list(gone.checkpoints))

        self.ranks.from_rank0(collect_on_rank0)

    def _can_resume(self, step: int) -> bool:
        """Whether the ledger holds what a run at this step needs.

        Within a window, that is the window and the weights that it began with; before one, the weights that answer its prompts,
        unless they are the model's own.
        """
        window, position = self.schedule.locate(step)

        def look() -> bool:
            try:
                if position > 0:
                    check_window(self.ledger, self.schedule, self.ledger.verify("weights", window))
                elif window < self.schedule.windows and (sampler := self.schedule.sampler(window)) != window:
                    self.ledger.verify("weights", sampler)
                return True
            except TornError as error:
                logger.warning("window %d cannot be resumed: %s", window, error)
                return False

        return self.ranks.from_rank0(look)

    def _delete_checkpoint(self, step: int) -> None:
        # Its window cannot be repeated: the weights that it was sampled from or compared with are gone.
        logger.warning("the checkpoint at step %d belongs to a window that is lost; going further back", step)
        self.ranks.from_rank0(lambda: self.ledger.delete("checkpoint", step))
