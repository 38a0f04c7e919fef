"""Memory of this process: its peak, and returning to the kernel what it no longer uses."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress

import torch


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # in kibibytes everywhere but on macOS


def peak_cuda_bytes() -> int | None:
    """Peak GPU memory of this process's tensors, in bytes; None where it uses no GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def trim_memory() -> None:
    """Return freed memory to the kernel: glibc keeps the pages that loading a model or writing a checkpoint has used.

    Takes a few milliseconds. Does nothing with another C library.
    """
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
