"""The ledger: the directory tree of a run on the shared volume.

    durable       every change to the volume, one function a system call
    files         files written with their hash, listed and read with suspicion
    manifest      what MANIFEST.json says, and whether its directory agrees
    ledger        Ledger, the reader, and LedgerWriter, the one writer
    weights       safetensors, tensor by tensor        window   samples and pairs as Parquet
    gc            what is no longer needed             verification   what `spinrun ledger` shows

`weights` and `window` are imported at first use: torch and pyarrow take seconds, and `spinrun ledger` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spinrun_worker.ledger.errors import ForeignError, LedgerError, LedgerUnavailableError, SupersededError, TornError
from spinrun_worker.ledger.files import hash_file, read_record, replace_file, write_file, write_json
from spinrun_worker.ledger.gc import Collectable, collect, collectable
from spinrun_worker.ledger.layout import KINDS, Layout
from spinrun_worker.ledger.ledger import Ledger, LedgerWriter
from spinrun_worker.ledger.manifest import check_content, content_digest, read_manifest
from spinrun_worker.ledger.metrics import read_metrics
from spinrun_worker.ledger.verification import Finding, find_ledgers, verify_tree

if TYPE_CHECKING:
    from spinrun_worker.ledger.weights import TensorSpec, read_safetensors, weights_index, write_safetensors
    from spinrun_worker.ledger.window import read_pairs, read_rates, read_samples, write_pairs, write_rates, write_samples

__all__ = [
    "KINDS",
    "Collectable",
    "Finding",
    "ForeignError",
    "Layout",
    "Ledger",
    "LedgerError",
    "LedgerUnavailableError",
    "LedgerWriter",
    "SupersededError",
    "TensorSpec",
    "TornError",
    "check_content",
    "collect",
    "collectable",
    "content_digest",
    "find_ledgers",
    "hash_file",
    "read_manifest",
    "read_metrics",
    "read_pairs",
    "read_rates",
    "read_record",
    "read_safetensors",
    "read_samples",
    "replace_file",
    "verify_tree",
    "weights_index",
    "write_file",
    "write_json",
    "write_pairs",
    "write_rates",
    "write_safetensors",
    "write_samples",
]

_HEAVY = {
    "weights": ("TensorSpec", "read_safetensors", "weights_index", "write_safetensors"),
    "window": ("read_pairs", "read_rates", "read_samples", "write_pairs", "write_rates", "write_samples"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HEAVY.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
