"""Safetensors files, written and read tensor by tensor.

The format (github.com/huggingface/safetensors): the header's length as 8 little-endian bytes, the header as JSON padded with
spaces to a multiple of 8, then the tensors' bytes without gaps, in the order of their offsets.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import accumulate, cycle, pairwise
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from typing_extensions import Buffer

from spinrun_protocol.ledger import MANIFEST, FileEntry
from spinrun_worker.ledger import durable
from spinrun_worker.ledger.errors import TornError
from spinrun_worker.ledger.files import open_regular, write_file

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
_NAMED_DTYPES = {name: dtype for dtype, name in _DTYPES.items()}

# Converted and written in pieces of this size. A multiple of every dtype's size, so that no value is divided.
CHUNK_BYTES = durable.WRITE_BYTES

# torch divides larger copies among its threads, which then wait for each other while the thread that writes has their core.
_SERIAL_VALUES = 32768

# Which framework made the tensors; transformers refuses a file that does not say.
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    """Name of the parameter, as in the model's state dict."""

    dtype: torch.dtype
    """Its dtype in the file."""

    shape: Sequence[int]
    """Its full shape."""

    @property
    def num_bytes(self) -> int:
        """Size of its content in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[Tensor],
    *,
    metadata: Mapping[str, str] = _METADATA,
    convert: bool = False,
) -> FileEntry:
    """Write a safetensors file, holding one tensor in memory at a time and hashing on the way. Durable on return.

    Bytes are hashed and written by another thread while the next are brought to main memory and converted.

    Args:
        path: The file.
        specs: The tensors to come, in this order.
        tensors: One tensor for each spec, on any device. A generator makes them one at a time.
        metadata: The header's metadata.
        convert: Whether tensors of other dtypes are converted to those of their specs, instead of refused.

    Returns:
        The file's entry for a manifest.

    Raises:
        ValueError: The specs cannot be stored, or a tensor differs from its spec.
        LedgerUnavailableError: The volume refuses.
    """
    return write_file(path, _content(_header(specs, metadata), specs, tensors, convert), overlap=True)


def read_safetensors(path: Path, entry: FileEntry) -> Generator[tuple[str, Tensor]]:
    """Read a file that `write_safetensors` wrote, one tensor in memory at a time, hashing on the way.

    Args:
        path: The file.
        entry: What the manifest says of it.

    Yields:
        Name and tensor.

    Raises:
        TornError: The file is not what the entry says. Known for certain only after the last tensor.
    """
    descriptor = open_regular(path)
    if descriptor is None:
        raise TornError(f"{path} is missing")
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size != entry.size:
            raise TornError(f"{path} has {size} bytes, {MANIFEST} says {entry.size}")
        hasher = xxhash.xxh3_128()
        header_size = int.from_bytes(_read(file, 8, path, hasher), "little")
        header = _read(file, min(header_size, size - 8), path, hasher)
        for spec in _specs(header, path, size - 8 - len(header)):
            content = _read(file, spec.num_bytes, path, hasher)
            # torch accepts no empty buffer.
            flat = torch.frombuffer(content, dtype=spec.dtype) if content else torch.empty(0, dtype=spec.dtype)
            yield spec.name, _reshaped(flat, spec, path)
            del content, flat  # before the next one is read
    if hasher.hexdigest() != entry.xxh3_128:
        raise TornError(f"{path} has different content than {MANIFEST} says (xxh3-128 differs)")


def _read(file: BufferedReader, count: int, path: Path, hasher: xxhash.xxh3_128) -> bytearray:
    """The next bytes of a file."""
    content = bytearray(max(0, count))
    with durable.unavailable(path, "read"):
        if file.readinto(content) != len(content):
            raise TornError(f"{path} ends early")
    hasher.update(content)
    return content


def _reshaped(flat: Tensor, spec: TensorSpec, path: Path) -> Tensor:
    try:
        return flat.reshape(tuple(spec.shape))
    except (RuntimeError, TypeError, OverflowError) as error:
        # Without elements, sizes may have any product.
        raise TornError(f"{path} has a tensor {spec.name} of a shape that cannot be: {error}") from error


def _specs(header: bytearray, path: Path, num_bytes: int) -> list[TensorSpec]:
    """What the header says of the tensors, in the order of their bytes. Raises TornError when SpinRun did not write it."""
    try:
        document = json.loads(header)
        document.pop("__metadata__")
        specs = [TensorSpec(name, _NAMED_DTYPES[entry["dtype"]], entry["shape"]) for name, entry in document.items()]
        found = [entry["data_offsets"] for entry in document.values()]
        if not all(type(size) is int and size >= 0 for spec in specs for size in spec.shape):
            raise ValueError("sizes are whole numbers")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TornError(f"{path} has no valid header: it is not a safetensors file that SpinRun wrote") from error
    ends = list(accumulate(spec.num_bytes for spec in specs))
    if found != [[start, end] for start, end in pairwise([0, *ends])] or num_bytes != (ends[-1] if ends else 0):
        raise TornError(f"{path} has tensors at other offsets than its header says")
    return specs


def weights_index(shards: Mapping[str, Sequence[TensorSpec]]) -> bytes:
    """Content of model.safetensors.index.json: which file holds which tensor.

    Args:
        shards: The tensors of each file, by file name.

    Raises:
        ValueError: Two files hold the same tensor.
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
            raise ValueError(f"{spec.name} would not be aligned at byte {offset}: put tensors of wider dtypes first")
        end = offset + spec.num_bytes
        document[spec.name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(document, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _refuse_duplicates(names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"tensor names must be unique, these are not: {', '.join(repeated)}")


def _content(header: bytes, specs: Sequence[TensorSpec], tensors: Iterable[Tensor], convert: bool) -> Generator[Buffer]:
    """The file's bytes in chunks of CHUNK_BYTES, in two buffers that take turns: one is written while the other is filled."""
    yield header
    buffers = cycle([torch.empty(CHUNK_BYTES, dtype=torch.uint8) for _ in range(2)])
    buffer, used = next(buffers), 0
    source = iter(tensors)
    for spec in specs:
        tensor = next(source, None)
        if tensor is None:
            raise ValueError(f"tensor {spec.name} is missing")
        _require_like(tensor, spec, convert)
        values = tensor.detach().contiguous().reshape(-1)
        while values.numel():
            count = min(values.numel(), (CHUNK_BYTES - used) // spec.dtype.itemsize)
            size = count * spec.dtype.itemsize
            _convert(values[:count], buffer[used : used + size].view(spec.dtype))
            values, used = values[count:], used + size
            if used == CHUNK_BYTES:
                yield buffer.numpy().data
                buffer, used = next(buffers), 0
        del tensor, values  # before the next one is made
    if next(source, None) is not None:
        raise ValueError(f"there are more tensors than the {len(specs)} specs")
    yield buffer[:used].numpy().data


def _convert(source: Tensor, target: Tensor) -> None:
    """Copy values to main memory, in the target's dtype; of the same dtype, every bit stays as it is."""
    if source.device.type != "cpu":
        target.copy_(source)
        return
    for some, place in zip(source.split(_SERIAL_VALUES), target.split(_SERIAL_VALUES), strict=True):
        place.copy_(some)


def _require_like(tensor: Tensor, spec: TensorSpec, convert: bool) -> None:
    if (tensor.dtype != spec.dtype and not convert) or tuple(tensor.shape) != tuple(spec.shape):
        raise ValueError(f"{spec.name} should be {spec.dtype} {tuple(spec.shape)}, got {tensor.dtype} {tuple(tensor.shape)}")
