"""Which number type the trainer computes in, and that the same run computes the same bits."""

import os
import time
from itertools import chain, repeat
from typing import Any, cast

import torch

MEASURE_SECONDS = 0.1
"""Time for each number type; a last, slower product may take twice as long again."""


def choose_compute_dtype(device: torch.device) -> tuple[torch.dtype, dict[str, float | str]]:
    """The faster number type of matrix products, and the measurement for the run's record (GFLOP/s by name).

    GPUs: bfloat16. CPUs: whichever of float32 and bfloat16 is faster here: bfloat16 is anything between twice as fast and
    eighty times slower. A measurement alone would be at the mercy of what else the machine does at that moment, so bfloat16 also
    needs a processor that has it. Ranks may measure differently: rank 0 decides for all.
    """
    if device.type != "cpu":
        return torch.bfloat16, {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    speeds = {dtype: matmul_gflops(dtype) for dtype in (torch.float32, torch.bfloat16)}
    # float32 is the better number type: bfloat16 has to earn its place.
    pays = has_bfloat16() and speeds[torch.bfloat16] > 1.2 * speeds[torch.float32]
    fastest = torch.bfloat16 if pays else torch.float32
    return fastest, {f"{str(dtype).removeprefix('torch.')}_gflops": round(speed, 1) for dtype, speed in speeds.items()}


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; taken to be so where that is not known."""
    capabilities = cast(dict[str, Any], torch.cpu.get_capabilities())
    if capabilities.get("architecture") != "x86_64":
        return True
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def matmul_gflops(dtype: torch.dtype, *, device: torch.device | None = None, seconds: float = MEASURE_SECONDS) -> float:
    """Speed of matrix products on a device, by default the CPU: the best of as many as fit into the time, small ones first.

    Where bfloat16 is emulated, a product as large as the model's would alone take seconds.
    """
    device = device or torch.device("cpu")
    on_gpu = device.type == "cuda"
    best = 0.0
    first = torch.ones(16, 16, dtype=dtype, device=device)
    torch.mm(first, first)  # the first one also starts the library
    started = time.perf_counter()
    for size in chain((64, 128, 256, 512), repeat(8192 if on_gpu else 1024)):
        first, second = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        if on_gpu:
            torch.cuda.synchronize(device)
        before = time.perf_counter()
        if before - started > seconds:
            break
        torch.mm(first, second)
        if on_gpu:
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - before) / 1e9)
    return best


def use_deterministic_algorithms(device: torch.device) -> None:
    """Make the same input give the same bits, run after run, on the same kind of device and number of ranks and threads.

    Call it before the first computation on a GPU, whose libraries read their setting then.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Where a kernel has no deterministic form it warns, once, instead of ending the run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False
    else:
        # Setting the number of threads forbids MKL to use fewer when the machine is busy, which would change its sums.
        torch.set_num_threads(torch.get_num_threads())
