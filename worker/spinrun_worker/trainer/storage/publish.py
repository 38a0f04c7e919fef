"""Publication: the policy as a folder that transformers and vLLM load, written by all ranks.

Whole tensors are dealt out to the ranks, about the same number of bytes to each. Tensor by tensor all ranks gather it, and
the one it belongs to writes it, so that none ever holds more than one gathered tensor.
"""

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from spinrun_protocol.ledger import FileEntry, Kind, Manifest
from spinrun_worker.ledger import LedgerError, LedgerWriter, TensorSpec, weights_index, write_file, write_safetensors
from spinrun_worker.trainer.ranks.distributed import Distributed

MAX_SHARD_BYTES = 5_000_000_000
"""Largest file of weights, unless a single tensor is larger: the size that Hugging Face's own tools choose."""


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    rank: int
    """Who writes it."""

    file: str
    """Its name."""

    tensors: tuple[TensorSpec, ...]
    """What is in it, in the model's order."""


def publish(
    ledger: LedgerWriter,
    ranks: Distributed,
    tensors: Mapping[str, Tensor],
    *,
    version: int,
    step: int,
    dtype: torch.dtype,
    assets: Mapping[str, bytes],
    file: str | None = None,
    kind: Kind = "weights",
    parent: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Manifest:
    """Write the policy's weights as a version and return its manifest on every rank. All ranks call it.

    tensors: the policy's parameters by their Hugging Face names, sharded (DTensor) or whole, the same on all ranks; a tensor
    under two names is written under the first. dtype: number type to publish in. assets: the other files, see
    `collect_assets`. file: name of the one file that all tensors go to; None: shards of every rank. kind, parent: as in the
    manifest, for a version that is merged. The same tensors and number of ranks give the same bytes.
    Raises on all ranks what any of them met: LedgerUnavailableError, SupersededError.
    """
    names = ranks.from_rank0(lambda: distinct(tensors))
    specs = [TensorSpec(name, dtype, tensors[name].shape) for name in names]
    shards = [Shard(0, file, tuple(specs))] if file else plan_shards(specs, ranks.world_size, max_shard_bytes)
    directory = ranks.from_rank0(lambda: ledger.begin(kind, version))
    entries = _write_together(directory, ranks, shards, {name: tensors[name] for name in names}, dtype)

    def commit() -> Manifest:
        files = entries + _write_rest(directory, shards, assets)
        return ledger.commit(kind, version, files, step=step, version=version, parent=parent)

    return ranks.from_rank0(commit)


def distinct(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors in order; of tensors that share their memory (tied weights) only the first.

    Asked on rank 0 only, because a rank whose part of a tensor is empty cannot tell.
    """
    names: dict[object, str] = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        names.setdefault((local.data_ptr(), tuple(tensor.shape)) if local.numel() else name, name)
    return list(names.values())


def plan_shards(tensors: Sequence[TensorSpec], world_size: int, max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """Which rank writes which tensors into which files. The same on every rank: it depends on the arguments alone.

    The largest tensor first, each goes to the rank that has the fewest bytes so far.
    """
    load = [(0, rank) for rank in range(world_size)]
    owner: dict[str, int] = {}
    for spec in sorted(tensors, key=lambda spec: (-spec.num_bytes, spec.name)):
        num_bytes, rank = heapq.heappop(load)
        owner[spec.name] = rank
        heapq.heappush(load, (num_bytes + spec.num_bytes, rank))
    files = [
        (rank, group)
        for rank in range(world_size)
        for group in _split([spec for spec in tensors if owner[spec.name] == rank], max_shard_bytes)
    ]
    return [Shard(rank, _file_name(index, len(files)), tuple(group)) for index, (rank, group) in enumerate(files, start=1)]


def _split(tensors: Sequence[TensorSpec], max_bytes: int) -> Iterator[list[TensorSpec]]:
    """Runs of tensors in order, each of at most max_bytes or one tensor."""
    group: list[TensorSpec] = []
    size = 0
    for spec in tensors:
        if group and size + spec.num_bytes > max_bytes:
            yield group
            group, size = [], 0
        group.append(spec)
        size += spec.num_bytes
    if group:
        yield group


def _file_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index:05d}-of-{count:05d}.safetensors"


def _write_together(
    directory: Path, ranks: Distributed, shards: Sequence[Shard], tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> list[FileEntry]:
    """Every rank writes its shards; the entries of all of them, on every rank."""
    mine = [shard for shard in shards if shard.rank == ranks.rank]
    my_names = {spec.name for shard in mine for spec in shard.tensors}

    def gathered(item: tuple[str, Tensor]) -> Tensor | None:
        name, tensor = item
        whole = _whole(tensor, dtype)
        return whole if name in my_names else None

    # Not a generator: after a failed write the rest must still be gathered, because the other ranks do.
    wholes = filter(lambda tensor: tensor is not None, map(gathered, tensors.items()))
    entries: list[FileEntry] = []
    error: LedgerError | None = None
    try:
        for shard in mine:
            source = cast(Iterator[Tensor], islice(wholes, len(shard.tensors)))
            entries.append(write_safetensors(directory / shard.file, shard.tensors, source))
    except LedgerError as failure:
        error = failure
    deque(wholes, maxlen=0)
    ranks.raise_together(error)
    return [entry for entries_of_rank in ranks.gather(entries) for entry in entries_of_rank]


@torch.no_grad()
def _whole(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The full tensor in the published type; converted before it travels, as the result is the same and half the size."""
    tensor = tensor.detach().to(dtype)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _write_rest(directory: Path, shards: Sequence[Shard], assets: Mapping[str, bytes]) -> list[FileEntry]:
    """The index, where there are several shards, and the assets."""
    files = dict(assets)
    if len(shards) > 1:
        files["model.safetensors.index.json"] = weights_index({shard.file: shard.tensors for shard in shards})
    # The commit, which follows on this rank, syncs them all at once.
    return [write_file(directory / name, [content], root=directory, sync=False) for name, content in sorted(files.items())]


def collect_assets(save: Callable[[Path], None], *, dtype: torch.dtype) -> dict[str, bytes]:
    """Everything of a published version but its weights: configuration, generation configuration, tokenizer, by file name.

    save: writes them into a folder, by the `save_pretrained` of each. They do not change during a run, so that they are made
    once. dtype: number type to publish in, which config.json will say.
    """
    with TemporaryDirectory() as folder:
        save(Path(folder))
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        assets = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if "config.json" not in assets:
        raise ValueError("the assets of a version must hold a config.json: save the model's configuration with them")
    config = json.loads(assets["config.json"])
    # The source may have been quantized; what is published is not.
    config.pop("quantization_config", None)
    _set_dtype(config, str(dtype).removeprefix("torch."))
    assets["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
    return assets


def _set_dtype(config: dict[str, Any], name: str) -> None:
    """Say the number type at the top and in those parts of the configuration that say one."""
    config.pop("torch_dtype", None)  # its older name
    config["dtype"] = name
    for part in config.values():
        if isinstance(part, dict) and {"dtype", "torch_dtype"} & part.keys():
            _set_dtype(cast(dict[str, Any], part), name)
