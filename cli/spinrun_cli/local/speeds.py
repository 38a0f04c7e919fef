"""How fast this machine computes and copies, measured in a second: what `spinrun estimate --gpu cpu` reckons with."""

import os
import time

import torch

from spinrun_cli.estimate.hardware import Speeds
from spinrun_protocol.machine import available_cores
from spinrun_worker.trainer.model.precision import has_bfloat16, matmul_gflops

PRODUCT_SECONDS = 0.3
"""Time for the products of a dtype."""
COPY_BYTES = 64 << 20
"""Larger than the processor's caches."""
COPIES = 8


def measure_speeds() -> Speeds:
    """Measure this machine. The best of several tries: whatever else it does only slows it down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        return Speeds(
            bfloat16=matmul_gflops(torch.bfloat16, seconds=PRODUCT_SECONDS) * 1e9,
            float32=matmul_gflops(torch.float32, seconds=PRODUCT_SECONDS) * 1e9,
            copy=_copy_bytes_per_second(),
            computes_bfloat16=has_bfloat16(),
            cores=available_cores(),
            memory=_main_memory(),
        )
    finally:
        torch.set_num_threads(threads)


def gpu_name() -> str | None:
    """The first GPU of this machine, as its driver calls it; None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _copy_bytes_per_second() -> float:
    source, target = torch.zeros(COPY_BYTES // 4), torch.empty(COPY_BYTES // 4)
    best = 0.0
    for _ in range(COPIES):
        started = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * COPY_BYTES / (time.perf_counter() - started))
    return best


def _main_memory() -> float:
    """Bytes of this machine, or 0 where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return 0.0
