"""Memory of this process: what it needed at most, and giving back what it no longer uses."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress

import torch


def peak_bytes() -> int:
    """Most main memory that the process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # kibibytes but on macOS


def peak_cuda_bytes() -> int | None:
    """Most memory of its GPU that the process's tensors have taken so far; None where it uses none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def give_back() -> None:
    """Return to the kernel what was freed: glibc keeps the pages of a model's loading or a checkpoint's writing for itself.

    It takes some milliseconds. Another C library has nothing to return.
    """
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
