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
    """Write a version's base and adapter in one, a Hugging Face folder like a version of a whole model; returns its manifest.

    All ranks call it and share the writing. The base is read from its source once more, in fp32: the trainer's own may have been
    rounded for its arithmetic. One that is there already stays. dtype, assets: as for `publish`.
    Raises on all ranks ModelError, and what publish raises.
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
    """The merged model of these very weights, if it is there and whole."""
    try:
        manifest = ledger.verify("merged", weights.version)
    except TornError:
        return None
    return manifest if manifest.parent == weights.digest else None
