"""What ranks, rollouts and the volume between them can do: published figures of cards, and what is assumed beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic.alias_generators import to_camel

GB = 1e9
TFLOPS = 1e12


@dataclass(frozen=True)
class Card:
    """A GPU by its maker's figures."""

    name: str
    bfloat16: float
    """FLOP/s of dense bfloat16 products, without sparsity."""
    float32: float
    """FLOP/s of float32 arithmetic, in which torch multiplies float32 unless told otherwise."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: float
    """Bytes a second from one GPU of a node to another, one way."""
    source: str
    sequences: int = 1024
    """Sequences at once that vLLM 0.32's server takes on it, unless told otherwise."""
    batched_tokens: int = 8192
    """Tokens of a batch, likewise."""


CARDS = {
    card.name: card
    for card in (
        Card("A100-80", 312 * TFLOPS, 19.5 * TFLOPS, 80 * GB, 2039 * GB, 300 * GB, "NVIDIA A100 data sheet, 80GB SXM", 256, 2048),
        Card(
            "B200",
            2250 * TFLOPS,
            75 * TFLOPS,
            180 * GB,
            7700 * GB,
            900 * GB,
            "NVIDIA DGX B200 data sheet, an eighth",
            1024,
            16384,
        ),
        Card("H100", 989.5 * TFLOPS, 67 * TFLOPS, 80 * GB, 3350 * GB, 450 * GB, "NVIDIA H100 data sheet, SXM"),
        Card("H200", 989.5 * TFLOPS, 67 * TFLOPS, 141 * GB, 4800 * GB, 450 * GB, "NVIDIA H200 data sheet, SXM"),
        Card("L4", 121 * TFLOPS, 30.3 * TFLOPS, 24 * GB, 300 * GB, 32 * GB, "NVIDIA L4 data sheet", 256, 2048),
        Card("L40S", 362 * TFLOPS, 91.6 * TFLOPS, 48 * GB, 864 * GB, 32 * GB, "NVIDIA L40S data sheet", 256, 2048),
    )
}
"""By name. Where a data sheet gives FLOP/s with sparsity, half of it."""


@dataclass(frozen=True)
class Speeds:
    """What a machine without a GPU was measured at."""

    bfloat16: float
    """FLOP/s of the largest products of all cores."""
    float32: float
    """The same in float32."""
    copy: float
    """Bytes a second that a copy in main memory reads and writes, both counted."""
    computes_bfloat16: bool = True
    """Whether the processor has instructions for bfloat16."""
    cores: int = 2
    memory: float = 0.0
    """Bytes of main memory; 0: not known."""

    @property
    def dtype(self) -> str:
        """The dtype that `auto` stands for there: the trainer's own rule."""
        return "bfloat16" if self.computes_bfloat16 and self.bfloat16 > 1.2 * self.float32 else "float32"


@dataclass(frozen=True)
class Hardware:
    """What one rank, one GPU of a rollout, and the volume can do. `--assume` may name any number of it."""

    name: str
    is_gpu: bool
    bfloat16: float
    """FLOP/s of the fastest products."""
    float32: float
    memory: float
    """Bytes of a GPU; on CPUs of the machine, 0 where that is not known."""
    bandwidth: float
    """Bytes a second of the memory that a rank, or a GPU of a rollout, computes in."""
    link: float
    """Bytes a second between two ranks."""
    train_utilization: float
    """Share of the fastest products' FLOP/s that a train step reaches."""
    launch_seconds: float
    """Least seconds of a pair in a layer, forward and backward: the kernels that are started for it."""
    prefill_utilization: float
    """Share of the FLOP/s that reading prompts reaches in vLLM."""
    decode_utilization: float
    """Share of the FLOP/s that one token for each sequence reaches in vLLM."""
    bandwidth_utilization: float
    """Share of the memory's bandwidth that vLLM, the optimizer and conversions reach."""
    iteration_seconds: float
    """Seconds of one token for all sequences of a batch that no size changes: scheduling, sampling, detokenizing."""
    token_seconds: float
    """Seconds of each sequence in it, beside its arithmetic."""
    volume_write: float
    """Bytes a second of the ledger's volume, all writers together."""
    volume_read: float
    """Bytes a second of it, all readers together."""
    rollout_read: float
    """Bytes a second that one rollout can read and write to its scratch space, whatever the volume could give."""
    load: float
    """Bytes a second at which vLLM loads staged weights."""
    boundary_seconds: float
    """Seconds of publication, and as many of activation, that no size changes: small calls, fsync, manifests."""
    process_bytes: float
    """Main memory of a trainer's process before it has a model: Python, torch, transformers."""
    server_bytes: float
    """On a GPU: of vLLM beside weights and KV cache: context, graphs, a batch's activations. On CPUs: main memory likewise."""
    sequences: int
    """Sequences at once that vLLM takes unless told otherwise."""
    batched_tokens: int
    """Tokens of a batch likewise."""

    def flops(self, dtype: str) -> float:
        """FLOP/s of the fastest products in a dtype."""
        return self.float32 if dtype == "float32" else self.bfloat16


def of_card(card: Card) -> Hardware:
    """One card a rank and one for each GPU of a rollout, and an NFS server of 32 Gbit/s."""
    return Hardware(
        name=card.name,
        is_gpu=True,
        bfloat16=card.bfloat16,
        float32=card.float32,
        memory=card.memory,
        bandwidth=card.bandwidth,
        link=card.link,
        train_utilization=0.35,
        launch_seconds=1.9e-3,
        prefill_utilization=0.4,
        decode_utilization=0.25,
        bandwidth_utilization=0.6,
        iteration_seconds=6e-3,
        token_seconds=0.0,
        volume_write=2 * GB,
        volume_read=4 * GB,
        rollout_read=3 * GB,
        load=10 * GB,
        boundary_seconds=0.3,
        process_bytes=1.5 * GB,
        server_bytes=3 * GB,
        sequences=card.sequences,
        batched_tokens=card.batched_tokens,
    )


def of_machine(speeds: Speeds, name: str = "this machine") -> Hardware:
    """A machine without a GPU, which trainer, rollouts and ledger share."""
    return Hardware(
        name=name,
        is_gpu=False,
        bfloat16=speeds.bfloat16,
        float32=speeds.float32,
        memory=speeds.memory,
        bandwidth=speeds.copy,
        link=speeds.copy / 4,
        train_utilization=0.85,
        launch_seconds=0.0,
        prefill_utilization=0.75,
        decode_utilization=0.62,
        bandwidth_utilization=0.7,
        iteration_seconds=0.02,
        token_seconds=5e-4,
        volume_write=0.9 * GB,
        volume_read=4 * GB,
        rollout_read=4 * GB,
        load=1.1 * GB,
        boundary_seconds=0.15,
        process_bytes=1.0 * GB,
        server_bytes=1.1 * GB,
        sequences=256,
        batched_tokens=2048,
    )


WHY_GPU = {
    "train_utilization": "of rows of 4096 tokens and more; measured on an H200 with models of 0.5B to 3B, in torch 2.11",
    "launch_seconds": "the same steps, which start some sixty kernels a pair and layer",
    "prefill_utilization": "not measured",
    "decode_utilization": "not measured: 12,000 tokens a second of a 7B model on an H100",
    "bandwidth_utilization": "not measured",
    "iteration_seconds": "not measured",
    "volume_write": "an NFS server of 32 Gbit/s",
    "volume_read": "the same server, from its cache",
    "rollout_read": "a network of 25 Gbit/s and a local NVMe disk",
    "load": "from main memory over PCIe",
    "boundary_seconds": "as measured on two cores",
    "process_bytes": "Python, torch with CUDA, transformers",
    "server_bytes": "CUDA's context, graphs, a batch's activations",
}
WHY_CPU = {
    "bfloat16": "the fastest product of 1024 by 1024 just now",
    "float32": "the same",
    "bandwidth": "a copy in main memory just now",
    "train_utilization": "of the products alone; passes over the weights come on top",
    "prefill_utilization": "fitted to runs of docs/scaling.md",
    "decode_utilization": "fitted to runs of docs/scaling.md",
    "iteration_seconds": "fitted to runs of docs/scaling.md",
    "token_seconds": "fitted to runs of docs/scaling.md",
    "volume_write": "a local disk through the kernel's cache",
    "rollout_read": "hashing what the cache has: versions are linked, not copied",
    "load": "vLLM converts and packs while it reads",
    "boundary_seconds": "as measured on two cores",
    "process_bytes": "Python, torch, transformers, and what a run of windows leaves in the allocator",
    "server_bytes": "Python, torch, vLLM",
}


class AssumptionError(ValueError):
    """An assumption that does not exist or cannot have this value. The message says which there are."""


def assumed(given: Mapping[str, float], *holders: Any) -> list[Any]:
    """Dataclasses with numbers replaced by name.

    Args:
        given: Numbers by the names of fields, as YAML writes them: answerTokens.
        *holders: The dataclasses; each name is a field of one of them.

    Raises:
        AssumptionError: A name is unknown, or a number is not above zero.
    """
    known = {
        to_camel(field.name): (field.name, holder)
        for holder in holders
        for field in fields(holder)
        if _is_number(getattr(holder, field.name))
    }
    for name, value in given.items():
        if name not in known:
            raise AssumptionError(f"{name} is not an assumption. There are: {', '.join(sorted(known))}")
        if not 0 < value < 1e21:
            raise AssumptionError(f"{name} must be above 0 and below 1e21, got {value:g}")
        if name.endswith("Utilization") and value > 1:
            raise AssumptionError(f"{name} is a share and must not be above 1, got {value:g}")
    changes = [(*known[name], value) for name, value in given.items()]
    return [replace(holder, **{field: value for field, its, value in changes if its is holder}) for holder in holders]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
