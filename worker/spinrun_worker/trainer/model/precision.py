"""Which dtype the trainer computes in, and how the same run computes the same bits."""

import os
import time
from itertools import chain, repeat
from typing import Any, cast

import torch

MEASURE_SECONDS = 0.1
"""Time to measure each dtype; a last, slower product may take twice as long again."""


def choose_compute_dtype(device: torch.device) -> tuple[torch.dtype, dict[str, float | str]]:
    """Choose the faster dtype for matrix products.

    GPUs: bfloat16. CPUs: whichever of float32 and bfloat16 is faster here: bfloat16 is anything from twice as fast to eighty
    times slower. A measurement alone would be at the mercy of whatever else the machine is doing, so bfloat16 also requires a
    processor that supports it. Ranks may measure differently: rank 0 decides for all.

    Returns:
        The dtype, and the measurement for the run's record: GFLOP/s by name, or the GPU's name.
    """
    if device.type != "cpu":
        return torch.bfloat16, {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    speeds = {dtype: matmul_gflops(dtype) for dtype in (torch.float32, torch.bfloat16)}
    # float32 is the more precise dtype: bfloat16 has to earn its place.
    pays = has_bfloat16() and speeds[torch.bfloat16] > 1.2 * speeds[torch.float32]
    fastest = torch.bfloat16 if pays else torch.float32
    return fastest, {f"{str(dtype).removeprefix('torch.')}_gflops": round(speed, 1) for dtype, speed in speeds.items()}


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; assumed where that is unknown."""
    capabilities = cast(dict[str, Any], torch.cpu.get_capabilities())
    if capabilities.get("architecture") != "x86_64":
        return True
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def matmul_gflops(dtype: torch.dtype, *, device: torch.device | None = None, seconds: float = MEASURE_SECONDS) -> float:
    """Speed of matrix products: the best of as many as fit into the time, small ones first.

    Small ones first, because where bfloat16 is emulated a single product as large as the model's would take seconds.

    Args:
        dtype: Dtype of the matrices.
        device: Where to measure; None means the CPU.
        seconds: Time to spend.

    Returns:
        GFLOP/s.
    """
    device = device or torch.device("cpu")
    on_gpu = device.type == "cuda"
    best = 0.0
    first = torch.ones(16, 16, dtype=dtype, device=device)
    torch.mm(first, first)  # the first one also initializes the library
    started = time.perf_counter()
    for size in chain((64, 128, 256, 512), repeat(8192 if on_gpu else 1024)):
        first, second = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        if on_gpu:
            torch.cuda.synchronize(device)
        before = time.perf_counter()
        torch.mm(first, second)
        if on_gpu:
            torch.cuda.synchronize(device)
        after = time.perf_counter()
        best = max(best, 2 * size**3 / (after - before) / 1e9)
        if after - started > seconds:
            break
    return best


def use_deterministic_algorithms(device: torch.device) -> None:
    """Make the same input give the same bits, run after run, on the same kind of device and number of ranks and threads.

    Must be called before the first computation on a GPU, when its libraries read their setting.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Where a kernel has no deterministic form, warn once instead of ending the run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False
    else:
        # Setting the number of threads keeps MKL from using fewer when the machine is busy, which would change its sums.
        torch.set_num_threads(torch.get_num_threads())
