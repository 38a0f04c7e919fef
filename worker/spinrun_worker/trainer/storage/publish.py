"""Publication: the policy as a folder that transformers and vLLM can load, written by all ranks.

Whole tensors are divided among the ranks, about the same number of bytes to each. All ranks gather one tensor at a time, and
its owner writes it, so that no rank ever holds more than one gathered tensor.
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from spinrun_protocol.ledger import FileEntry, Kind, Manifest, Reference
from spinrun_worker.ledger import LedgerError, LedgerWriter, TensorSpec, weights_index, write_file, write_safetensors
from spinrun_worker.trainer.ranks.balance import divide_evenly
from spinrun_worker.trainer.ranks.distributed import Distributed

MAX_SHARD_BYTES = 5_000_000_000
"""Maximum size of a file of weights, unless a single tensor is larger: the default of Hugging Face's own tools."""


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    rank: int
    """The rank that writes it."""

    file: str
    """Its name."""

    tensors: tuple[TensorSpec, ...]
    """Its content, in the model's order."""


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
    reference: Reference | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Manifest:
    """Write the policy's weights as a version. All ranks call it.

    The same tensors and number of ranks give the same bytes.

    Args:
        ledger: Where the version goes.
        ranks: The ranks.
        tensors: The policy's parameters by their Hugging Face names, sharded (DTensor) or whole, the same on all ranks. A tensor
            with two names is written under the first.
        version: Number of the version.
        step: Optimizer steps done.
        dtype: Dtype to publish in.
        assets: The version's other files, see `collect_assets`.
        file: Name of the one file that holds all tensors; None means shards from every rank.
        kind: What the manifest says the directory is: weights, a merged model, or a reference that is a mixture.
        parent: The manifest's parent: for a merged model the digest of the adapter's version; see Manifest.
        reference: The manifest's reference; see Manifest.
        max_shard_bytes: Size of a file at most, unless a single tensor is larger.

    Returns:
        The version's manifest, on every rank.

    Raises:
        LedgerUnavailableError: On all ranks, when the volume refuses any of them.
        SupersededError: On all ranks, when a newer attempt owns the ledger.
    """
    names = ranks.from_rank0(lambda: distinct(tensors))
    specs = [TensorSpec(name, dtype, tensors[name].shape) for name in names]
    shards = [Shard(0, file, tuple(specs))] if file else plan_shards(specs, ranks.world_size, max_shard_bytes)
    directory = ranks.from_rank0(lambda: ledger.begin(kind, version))
    entries = _write_together(directory, ranks, shards, {name: tensors[name] for name in names}, dtype)

    def commit() -> Manifest:
        files = entries + _write_rest(directory, shards, assets)
        return ledger.commit(kind, version, files, step=step, version=version, parent=parent, reference=reference)

    return ranks.from_rank0(commit)


def distinct(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors in order; of tensors that share their memory (tied weights) only the first.

    Only rank 0's answer counts, because a rank whose part of a tensor is empty cannot tell.
    """
    names: dict[object, str] = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        names.setdefault((local.data_ptr(), tuple(tensor.shape)) if local.numel() else name, name)
    return list(names.values())


def plan_shards(tensors: Sequence[TensorSpec], world_size: int, max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """Decide which rank writes which tensors into which files, so that all write about the same number of bytes.

    The same on every rank: it depends on the arguments alone.

    Args:
        tensors: The tensors, in the model's order.
        world_size: Number of ranks.
        max_shard_bytes: Size of a file at most, unless a single tensor is larger.
    """
    by_name = sorted(tensors, key=lambda spec: spec.name)
    files = [
        (rank, group)
        for rank, indices in enumerate(divide_evenly([spec.num_bytes for spec in by_name], world_size))
        for group in _split(_in_order(tensors, {by_name[index].name for index in indices}), max_shard_bytes)
    ]
    return [Shard(rank, _file_name(index, len(files)), tuple(group)) for index, (rank, group) in enumerate(files, start=1)]


def _in_order(tensors: Sequence[TensorSpec], names: Collection[str]) -> list[TensorSpec]:
    return [spec for spec in tensors if spec.name in names]


def _split(tensors: Sequence[TensorSpec], max_bytes: int) -> Iterator[list[TensorSpec]]:
    """Runs of tensors in order, each of at most max_bytes or a single tensor."""
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
    """Write every rank's shards, and return the entries of all of them on every rank."""
    mine = [shard for shard in shards if shard.rank == ranks.rank]
    my_names = {spec.name for shard in mine for spec in shard.tensors}

    def gathered(item: tuple[str, Tensor]) -> Tensor | None:
        name, tensor = item
        whole = _whole(tensor, dtype)
        return whole if name in my_names else None

    # Not a generator: after a failed write the rest must still be gathered, because the other ranks do so.
    wholes = filter(lambda tensor: tensor is not None, map(gathered, tensors.items()))
    entries: list[FileEntry] = []
    error: LedgerError | None = None
    try:
        for shard in mine:
            source = cast(Iterator[Tensor], islice(wholes, len(shard.tensors)))
            entries.append(write_safetensors(directory / shard.file, shard.tensors, source, convert=True))
    except LedgerError as failure:
        error = failure
    deque(wholes, maxlen=0)
    ranks.raise_together(error)
    return [entry for entries_of_rank in ranks.gather(entries) for entry in entries_of_rank]


@torch.no_grad()
def _whole(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The full tensor. A sharded one is converted before it is sent: the result is the same, and half the size; a whole one is
    converted while it is written, piece by piece."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    return cast(DTensor, tensor.detach().to(dtype)).full_tensor()


def _write_rest(directory: Path, shards: Sequence[Shard], assets: Mapping[str, bytes]) -> list[FileEntry]:
    """Write the index, where there are several shards, and the assets."""
    files = dict(assets)
    if len(shards) > 1:
        files["model.safetensors.index.json"] = weights_index({shard.file: shard.tensors for shard in shards})
    # The commit, which this rank does next, syncs them all at once.
    return [write_file(directory / name, [content], root=directory, sync=False) for name, content in sorted(files.items())]


def collect_assets(save: Callable[[Path], None], *, dtype: torch.dtype) -> dict[str, bytes]:
    """The files of a published version other than its weights: configuration, generation configuration, tokenizer.

    They do not change during a run, so they are made once.

    Args:
        save: Writes them into a folder, with the `save_pretrained` of each.
        dtype: Dtype to publish in, for config.json.

    Returns:
        Content by file name.

    Raises:
        ValueError: There is no config.json among them.
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


def with_dtype(assets: Mapping[str, bytes], dtype: torch.dtype) -> dict[str, bytes]:
    """The other files of a version whose weights are published in another dtype."""
    config = json.loads(assets["config.json"])
    _set_dtype(config, str(dtype).removeprefix("torch."))
    return {**assets, "config.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"}


def _set_dtype(config: dict[str, Any], name: str) -> None:
    """Set the dtype at the top level and in those parts of the configuration that have one."""
    config.pop("torch_dtype", None)  # the older name
    config["dtype"] = name
    for part in config.values():
        if isinstance(part, dict) and {"dtype", "torch_dtype"} & part.keys():
            _set_dtype(cast(dict[str, Any], part), name)
