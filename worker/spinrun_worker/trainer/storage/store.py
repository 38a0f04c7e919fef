"""How this attempt's model reaches the ledger and comes back."""

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
    """The ledger as the loop sees it. All ranks call every method together."""

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

        tensors: the policy's parameters by their Hugging Face names. dtype: number type of published weights. assets: the other
        files of a version. file: the one that a version's tensors are in; None: as many as it takes. acknowledged: on rank 0, the
        version that each live agent serves.
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
        """Write the weights of this moment as a version; returns its manifest."""
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
        """Write a checkpoint, unless no step has had a pair yet: the model is then still the source. Returns its manifest."""
        if not self.optimizer.state:
            return None
        return save_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, TrainerState(step=step, version=version))

    def reference(self, weights: Manifest) -> Manifest:
        """The version that the pairs of a window are compared with; weights: the version that it begins with.

        Raises TornError, on all ranks, when the ledger does not hold that version as earlier windows had it.
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
        """The version that answers the prompts of a window; weights: the version that it begins with.

        Raises TornError, on all ranks, when the ledger does not hold it.
        """
        return self.ranks.from_rank0(lambda: sampler_of(self.ledger, self.schedule, weights))

    @contextmanager
    def in_place_of_policy(self, weights: Manifest) -> Generator[None]:
        """A published version in the model for the length of the block, then the policy again, bit for bit.

        Raises TornError, on all ranks, when a file is not what the manifest says.
        """
        with in_place_of_policy(self.ledger, self.ranks, self.tensors(), weights):
            yield

    def resume(self) -> int:
        """Load the newest checkpoint from which the run can go on; returns the steps done, 0 without one."""
        while (checkpoint := latest_checkpoint(self.ledger, self.ranks)) is not None:
            if self._can_go_on(checkpoint.step):
                state = load_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, checkpoint)
                logger.info("going on from the checkpoint at step %d", state.step)
                return state.step
            self._delete_checkpoint(checkpoint.step)
        return 0

    def collect_garbage(self, *, newest: int, best: Best | None) -> None:
        """Delete the checkpoints and versions that nobody needs any more; the best version stays, and so do references and what
        the window under way was sampled from.

        Windows are never deleted: those that are replayed are there.
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

    def _can_go_on(self, step: int) -> bool:
        """Whether the ledger holds what a run at this step needs: within a window the window, with the weights that it began
        with; before one, the weights that answer its prompts, unless they are the model's own."""
        window, position = self.schedule.locate(step)

        def look() -> bool:
            try:
                if position > 0:
                    check_window(self.ledger, self.schedule, self.ledger.verify("weights", window))
                elif window < self.schedule.windows and (sampler := self.schedule.sampler(window)) != window:
                    self.ledger.verify("weights", sampler)
                return True
            except TornError as error:
                logger.warning("window %d cannot be made: %s", window, error)
                return False

        return self.ranks.from_rank0(look)

    def _delete_checkpoint(self, step: int) -> None:
        # Its window cannot be made again: the weights that it was sampled from or compared with are gone.
        logger.warning("the checkpoint at step %d belongs to a window that is lost; going further back", step)
        self.ranks.from_rank0(lambda: self.ledger.delete("checkpoint", step))
