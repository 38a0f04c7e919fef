"""Safetensors files, written tensor by tensor.

The format (github.com/huggingface/safetensors): the header's length as 8 bytes little-endian, the header as JSON padded by spaces
to a multiple of 8, then the tensors' bytes without gaps, in the order of their offsets.
"""

import json
import math
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Buffer

from spinrun_api.ledger import FileEntry
from spinrun_worker.ledger.files import write_file

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

# Who made the tensors; transformers refuses a file that does not say.
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    """Name of the parameter, as the model's state dict has it."""

    dtype: torch.dtype
    """Number type in the file."""

    shape: Sequence[int]
    """Its full shape."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its content."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, specs: Sequence[TensorSpec], tensors: Iterable[Tensor], *, metadata: Mapping[str, str] = _METADATA
) -> FileEntry:
    """Write a safetensors file with never more than one of the tensors in memory, hashing on the way; durable on return.

    specs: what will come, in that order. tensors: one for each spec, on any device; made one at a time where it is a generator.
    Raises ValueError when the specs cannot be stored or a tensor is not as its spec says, and as write_file does.
    """
    return write_file(path, _content(_header(specs, metadata), specs, tensors))


def weights_index(shards: Mapping[str, Sequence[TensorSpec]]) -> bytes:
    """Content of model.safetensors.index.json: which file holds which tensor.

    shards: the tensors of each file by its name. Raises ValueError when two files hold the same tensor.
    """
    _refuse_duplicates(spec.name for specs in shards.values() for spec in specs)
    weight_map = {spec.name: file for file, specs in shards.items() for spec in specs}
    total_size = sum(spec.num_bytes for specs in shards.values() for spec in specs)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    _refuse_duplicates(["__metadata__", *(spec.name for spec in specs)])
    document: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for spec in specs:
        if spec.dtype not in _DTYPES:
            raise ValueError(f"{spec.name}: safetensors has no {spec.dtype}; it has {', '.join(map(str, _DTYPES))}")
        if offset % spec.dtype.itemsize:
            raise ValueError(f"{spec.name} would not be aligned at byte {offset}: put tensors of wider number types first")
        end = offset + spec.num_bytes
        document[spec.name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(document, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _refuse_duplicates(names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"tensor names must differ, these do not: {', '.join(repeated)}")


def _content(header: bytes, specs: Sequence[TensorSpec], tensors: Iterable[Tensor]) -> Generator[Buffer]:
    yield header
    source = iter(tensors)
    for spec in specs:
        tensor = next(source, None)
        if tensor is None:
            raise ValueError(f"tensor {spec.name} did not come")
        yield _bytes(tensor, spec)
        del tensor  # before the next one is made
    if next(source, None) is not None:
        raise ValueError(f"more than the {len(specs)} tensors of the specs came")


def _bytes(tensor: Tensor, spec: TensorSpec) -> Buffer:
    if tensor.dtype != spec.dtype or tuple(tensor.shape) != tuple(spec.shape):
        raise ValueError(f"{spec.name} should be {spec.dtype} {tuple(spec.shape)}, came as {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
