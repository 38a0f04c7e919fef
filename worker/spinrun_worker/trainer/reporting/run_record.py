"""What run.json says: the run, and what it runs on."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from spinrun_api.run import SpinRun
from spinrun_protocol.ledger import RunRecord
from spinrun_protocol.machine import available_cores
from spinrun_worker.trainer.ranks.distributed import Distributed

LIBRARIES = ("spinrun", "torch", "transformers", "peft", "safetensors", "tokenizers", "datasets", "numpy")


def make_record(
    run: SpinRun,
    ranks: Distributed,
    *,
    attempt: int,
    compute_dtype: torch.dtype,
    published_dtype: torch.dtype,
    base_digest: str | None,
    measurement: Mapping[str, float | str],
) -> RunRecord:
    """The record of an attempt.

    Args:
        run: The run, every default filled in.
        ranks: Those of the attempt.
        attempt: Its number.
        compute_dtype: Of the trainer's arithmetic.
        published_dtype: Of the versions.
        base_digest: Identity of the weights beside which adapters are trained, where there are adapters.
        measurement: What decided the dtype of the arithmetic.
    """
    return RunRecord(
        run=run.to_document(),
        versions={"python": platform.python_version(), **{name: _installed(name) for name in LIBRARIES}},
        machine={
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "device": ranks.device.type,
            "threads": torch.get_num_threads(),
            **measurement,
        },
        compute_dtype=_dtype_name(compute_dtype),
        published_dtype=_dtype_name(published_dtype),
        base_digest=base_digest,
        source_revision=os.environ.get("SPINRUN_SOURCE_REVISION"),
        attempt=attempt,
        world_size=ranks.world_size,
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
