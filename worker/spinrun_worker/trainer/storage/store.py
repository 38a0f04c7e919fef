"""How this attempt's model gets to the ledger and back."""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spinrun_api.status import Best
from spinrun_protocol.ledger import Manifest, Reference
from spinrun_worker.ledger import LedgerWriter, TornError, collect
from spinrun_worker.trainer.ranks.distributed import Distributed, collective
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.checkpoint import TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint
from spinrun_worker.trainer.storage.lineage import check_window, reference_before, reference_of, sampler_of
from spinrun_worker.trainer.storage.publish import publish

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """What a version is made of."""

    tensors: Callable[[], Mapping[str, Tensor]]
    """The policy's parameters by their Hugging Face names."""
    dtype: torch.dtype
    """Of the published weights."""
    assets: Mapping[str, bytes]
    """The other files of a version."""
    file: str | None
    """The one that a version's tensors are in; None: as many as it takes."""


class RunStore:
    """The ledger as the trainer sees it. All ranks call every method together."""

    def __init__(
        self,
        ledger: LedgerWriter,
        ranks: Distributed,
        schedule: Schedule,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        publication: Publication,
        keep_checkpoints: int,
    ) -> None:
        """Put the parts together."""
        self.ledger = ledger
        self.ranks = ranks
        self.schedule = schedule
        self.model = model
        self.optimizer = optimizer
        self.publication = publication
        self.keep_checkpoints = keep_checkpoints

    def publish(self, *, version: int, step: int) -> Manifest:
        """Write the weights of this moment as a version; returns its manifest."""
        made_of = self.publication
        return publish(
            self.ledger,
            self.ranks,
            made_of.tensors(),
            version=version,
            step=step,
            dtype=made_of.dtype,
            assets=made_of.assets,
            file=made_of.file,
        )

    @collective
    def published(self, version: int) -> Manifest:
        """A version that an earlier attempt has published. Raises TornError when the ledger does not hold it whole."""
        return self.ledger.verify("weights", version)

    def save(self, *, step: int, version: int) -> Manifest | None:
        """Write a checkpoint, unless no step has had a pair yet: the model is then still the source. Returns its manifest."""
        if not self.optimizer.state:
            return None
        return save_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, TrainerState(step=step, version=version))

    @collective
    def reference(self, weights: Manifest) -> Manifest | None:
        """The version that the pairs of a window are compared with; None where the loss compares with none.

        Args:
            weights: The version that the window begins with.

        Raises:
            TornError: The ledger does not hold the reference as earlier windows had it.
        """
        wanted = reference_of(self.ledger, self.schedule, weights)
        if wanted is None:
            return None
        return weights if wanted.digest == weights.digest else self._found(wanted)

    @collective
    def ingredients(self, weights: Manifest) -> Manifest | None:
        """The reference before, to be mixed with the weights that a window begins with; None where the window's reference is not
        a mixture, or the ledger has it.

        Raises:
            TornError: The ledger does not hold the reference before.
        """
        if not self.schedule.mixes_at(weights.version):
            return None
        with suppress(TornError):
            reference_of(self.ledger, self.schedule, weights)
            self.ledger.verify("reference", weights.version, hashes=False)
            return None
        return self._found(reference_before(self.ledger, self.schedule, weights.version))

    def _found(self, wanted: Reference) -> Manifest:
        """The manifest of a reference that the ledger holds. Raises TornError."""
        kind = wanted.kind or "weights"
        found = self.ledger.verify(kind, wanted.version, hashes=False)
        if found.digest != wanted.digest:
            raise TornError(
                f"{self.ledger.layout.path(kind, wanted.version)} holds other weights than those that window {wanted.version} "
                "began with: it cannot be the reference of later windows"
            )
        return found

    @collective
    def sampler(self, weights: Manifest) -> Manifest:
        """The version that answers the prompts of a window; weights: the version that it begins with.

        Raises:
            TornError: The ledger does not hold it.
        """
        return sampler_of(self.ledger, self.schedule, weights)

    @collective
    def has_window(self, number: int, sampler: Manifest) -> bool:
        """Whether the ledger has a window whole and sampled from these weights."""
        try:
            return self.ledger.verify("window", number).parent == sampler.digest
        except TornError:
            return False

    def resume(self) -> int:
        """Load the newest checkpoint from which the run can continue; returns the steps done, 0 without one."""
        while (checkpoint := latest_checkpoint(self.ledger, self.ranks)) is not None:
            if self._can_resume(checkpoint.step):
                state = load_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, checkpoint)
                logger.info("resuming from the checkpoint at step %d", state.step)
                return state.step
            self._delete_checkpoint(checkpoint.step)
        return 0

    @collective
    def collect_garbage(self, *, newest: int, best: Best | None, acknowledged: Collection[int]) -> None:
        """Delete the checkpoints and versions that nobody needs any more.

        The best version stays, and so do references and what the window under way was sampled from. Windows are never deleted:
        those that are replayed are there.

        Args:
            newest: The version that agents are told to serve.
            best: The best version so far.
            acknowledged: For each live agent the version that it serves.
        """
        gone = collect(
            self.ledger,
            keep_checkpoints=self.keep_checkpoints,
            acknowledged=acknowledged,
            newest=newest,
            needed={best.version} if best else set[int](),
            read_by=lambda window: [
                self.schedule.sampler(window),
                *(number for number in self._references(window) if not self.schedule.is_mixture(number)),
            ],
            mixtures_read_by=lambda window: list(filter(self.schedule.is_mixture, self._references(window))),
        )
        if gone.weights or gone.checkpoints:
            logger.info("deleted versions %s and checkpoints %s", list(gone.weights), list(gone.checkpoints))

    def _references(self, window: int) -> list[int]:
        """What the pairs of a window are compared with, and what that is mixed from, if the window begins with the mixture: an
        attempt that resumes there may have to make it again."""
        reference = self.schedule.reference(window)
        if reference is None:
            return []
        before = self.schedule.reference(window - 1) if reference == window and self.schedule.is_mixture(window) else None
        return [reference] if before is None else [reference, before]

    @collective
    def _can_resume(self, step: int) -> bool:
        """Whether the ledger holds what a run at this step needs: within a window the window, with the weights that it began
        with; before one, the weights that answer its prompts, unless they are the model's own."""
        window, position = self.schedule.locate(step)
        try:
            if position > 0:
                check_window(self.ledger, self.schedule, self.ledger.verify("weights", window))
            elif window < self.schedule.windows and (sampler := self.schedule.sampler(window)) != window:
                self.ledger.verify("weights", sampler)
            return True
        except TornError as error:
            logger.warning("window %d cannot be resumed: %s", window, error)
            return False

    @collective
    def _delete_checkpoint(self, step: int) -> None:
        # Its window cannot be resumed: the weights that it was sampled from or compared with are gone.
        logger.warning("the checkpoint at step %d belongs to a window that is lost; going further back", step)
        self.ledger.delete("checkpoint", step)
