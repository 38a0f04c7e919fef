"""The last version of a run that trains adapters, as a whole model."""

from collections.abc import Mapping

import torch

from spinrun_api.spec import Model
from spinrun_protocol.ledger import Manifest
from spinrun_worker.ledger import LedgerWriter, TornError
from spinrun_worker.trainer.model.memory import trim_memory
from spinrun_worker.trainer.model.policy import load_merged
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.storage.publish import publish


def export_merged(
    ledger: LedgerWriter,
    ranks: Distributed,
    weights: Manifest,
    *,
    model: Model,
    dtype: torch.dtype,
    assets: Mapping[str, bytes],
) -> Manifest:
    """Write a version's base and adapter merged into one Hugging Face folder, like a version of a whole model.

    All ranks call it and share the writing. The base is read from its source again, in fp32: the trainer's own copy may have been
    rounded for its arithmetic. An existing merged model of the same weights is kept.

    Args:
        ledger: Where the version is, and where the merged model goes.
        ranks: The ranks.
        weights: The version.
        model: The spec's block.
        dtype: As for `publish`.
        assets: As for `publish`.

    Returns:
        The merged model's manifest, on every rank.

    Raises:
        ModelError: On all ranks, when the base cannot be loaded.
        LedgerUnavailableError: On all ranks, when the volume refuses any of them.
        SupersededError: On all ranks, when a newer attempt owns the ledger.
    """
    present = ranks.from_rank0(lambda: _present(ledger, weights))
    if present is not None:
        return present
    ranks.from_rank0(lambda: ledger.verify("weights", weights.version))
    folder = ledger.layout.weights(weights.version)
    whole = ranks.agree(lambda: load_merged(model, folder))
    try:
        return publish(
            ledger,
            ranks,
            whole.state(),
            version=weights.version,
            step=weights.step,
            dtype=dtype,
            assets=assets,
            kind="merged",
            parent=weights.digest,
        )
    finally:
        del whole
        trim_memory()


def _present(ledger: LedgerWriter, weights: Manifest) -> Manifest | None:
    """The merged model of exactly these weights, if the ledger holds it in full."""
    try:
        manifest = ledger.verify("merged", weights.version)
    except TornError:
        return None
    return manifest if manifest.parent == weights.digest else None
