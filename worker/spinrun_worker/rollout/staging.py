"""From the ledger to scratch space: bring a version there, and make sure that vLLM can load it before it is told to.

A failed reload kills vLLM, so everything that it could stumble over is checked here. Blocking: runs in a thread.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xxhash
from safetensors import SafetensorError, safe_open

from spinrun_protocol.commands import SERVED_MODEL
from spinrun_protocol.ledger import ADAPTER_CONFIG, FileEntry, Manifest
from spinrun_worker.ledger.errors import LedgerError, TornError
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.ledger.manifest import check_content
from spinrun_worker.model_files import is_pickle

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a model, by name."""

_CHUNK_BYTES = 4 << 20
_INDEX = "model.safetensors.index.json"
# Only what looks like ours is ever removed: a scratch folder may be shared by accident.
_OURS = re.compile(r"v\d{6,}-[0-9a-f]{8}(\.partial)?")


class StagingError(Exception):
    """A version that cannot be staged now. The message names the file and says what is wrong."""


class StagingCancelled(Exception):  # noqa: N818 - nothing failed
    """Meanwhile another version is wanted."""


@dataclass(frozen=True)
class Weights:
    """A version in scratch space, with every file as its manifest says."""

    manifest: Manifest
    path: Path
    shapes: Shapes
    vocabulary_size: int
    """Valid token ids are below this."""

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.manifest.number

    @property
    def digest(self) -> str:
        """Identity of the content."""
        return self.manifest.digest

    @property
    def label(self) -> str:
        """What vLLM is told to call these weights."""
        return weights_label(self.manifest)

    @property
    def is_adapter(self) -> bool:
        """Whether they are an adapter of the model that vLLM was started with."""
        return any(entry.path == ADAPTER_CONFIG for entry in self.manifest.files)

    @property
    def model_name(self) -> str:
        """The model that requests to vLLM name.

        An adapter has a name of its own in each version, so neither the base nor another version can answer in its place.
        """
        return self.label if self.is_adapter else SERVED_MODEL

    def require_intact(self) -> None:
        """Check that all files are still there, without reading their content again.

        Raises:
            StagingError: Some are missing or have changed in size.
        """
        try:
            check_content(self.path, self.manifest.files, hashes=False)
        except LedgerError as error:
            raise StagingError(str(error)) from error


def weights_label(manifest: Manifest) -> str:
    """Name of weights inside vLLM: a restarted vLLM has none, and different weights have different names."""
    return f"{manifest.number}-{manifest.digest}"


def staging_path(manifest: Manifest, scratch: Path) -> Path:
    """Where a version lies in scratch space."""
    return scratch / f"v{manifest.number:06d}-{manifest.digest[:8]}"


def stage(
    manifest: Manifest,
    ledger: Ledger,
    scratch: Path,
    *,
    expected: Shapes | None,
    cancelled: Callable[[], bool],
    read: Callable[[int], None],
) -> Weights:
    """Bring a version to scratch space and check it. What is already there is checked and reused.

    Args:
        manifest: The version.
        ledger: Where it comes from.
        scratch: Local folder that vLLM sees, too.
        expected: Shapes of the weights that vLLM can load; None while they are unknown.
        cancelled: Whether to give up.
        read: Called with the number of bytes as they are read.

    Raises:
        StagingError: The version cannot be staged now.
        StagingCancelled: `cancelled` said so.
    """
    target = staging_path(manifest, scratch)
    try:
        if not _holds(target, manifest):
            _require_published(manifest, ledger)
            _take_version(ledger.layout.weights(manifest.number), target, manifest.files, cancelled, read)
        return _examine(target, manifest, expected)
    except LedgerError as error:
        raise StagingError(str(error)) from error
    except OSError as error:
        raise StagingError(f"cannot stage version {manifest.number}: {_with_remedy(error, scratch)}") from error


def _with_remedy(error: OSError, scratch: Path) -> str:
    """What went wrong and, where the scratch space is full, what to do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return str(error)
    return f"{error.strerror}: {scratch}. Free space there or enlarge it (two versions must fit); it is tried again meanwhile"


def remove_all_but(kept: Iterable[Path], scratch: Path) -> None:
    """Remove versions, whole or partial, that nobody needs any more. Raises OSError."""
    keep = {path.name for path in kept}
    for path in scratch.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in keep:
            shutil.rmtree(path)


def _holds(target: Path, manifest: Manifest) -> bool:
    """Whether a folder from before is still what the manifest says."""
    if not target.is_dir():
        return False
    try:
        check_content(target, manifest.files, hashes=True)
    except TornError:
        shutil.rmtree(target)
        return False
    return True


def _require_published(manifest: Manifest, ledger: Ledger) -> None:
    """Raises LedgerError unless the volume holds this manifest, and beside it files of these names and sizes."""
    published = ledger.verify("weights", manifest.number, hashes=False)
    if published.digest != manifest.digest:
        raise TornError(
            f"{ledger.layout.weights(manifest.number)} holds other weights (digest {published.digest}) than those requested "
            f"({manifest.digest})"
        )


def _take_version(
    source: Path,
    target: Path,
    files: Iterable[FileEntry],
    cancelled: Callable[[], bool],
    read: Callable[[int], None],
) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for entry in files:
            (partial / entry.path).parent.mkdir(parents=True, exist_ok=True)
            _take_file(source / entry.path, partial / entry.path, entry, cancelled, read)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_file(source: Path, target: Path, entry: FileEntry, cancelled: Callable[[], bool], read: Callable[[int], None]) -> None:
    """Link a file, or copy it where ledger and scratch space are not one file system, hashing what is read.

    A link is as good as a copy: the ledger's files are never written to once they are there, only replaced and unlinked.
    Raises TornError when the content is not what the entry says.
    """
    is_linked = _link(source, target)
    hasher = xxhash.xxh3_128()
    size = 0
    # One buffer for everything: the kernel would have to clear the pages of a new one for each piece.
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    # The file may have been replaced since it was checked: a symbolic link is still refused, a pipe not waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with ExitStack() as files:
        reader = files.enter_context(os.fdopen(os.open(target if is_linked else source, flags), "rb", buffering=0))
        writer = None if is_linked else files.enter_context(target.open("xb"))
        while count := reader.readinto(buffer):
            if cancelled():
                raise StagingCancelled(entry.path)
            hasher.update(buffer[:count])
            if writer is not None:
                writer.write(buffer[:count])
            size += count
            read(count)
            if size > entry.size:
                break
    if (size, hasher.hexdigest()) != (entry.size, entry.xxh3_128):
        raise TornError(f"{source} has different content than its manifest says (size or xxh3-128 differs)")


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where the file systems do not allow that."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return False  # if the file itself is at fault, copying it will say so
    return True


def _examine(path: Path, manifest: Manifest, expected: Shapes | None) -> Weights:
    """What vLLM would find in a staged folder. Raises StagingError for anything that it could not load."""
    for entry in manifest.files:
        if is_pickle(entry.path):
            raise StagingError(f"{path / entry.path} would run code when it is loaded: only safetensors are taken as weights")
    shapes = _read_shapes(path)
    if expected is not None:
        _require_same(shapes, expected, path)
    return Weights(manifest, path, shapes, _vocabulary_size(path / "config.json"))


def _read_shapes(path: Path) -> Shapes:
    """Shapes of a folder's tensors. Raises StagingError unless they are one model that vLLM would load as a whole."""
    shapes: dict[str, tuple[int, ...]] = {}
    shard_of: dict[str, str] = {}
    for shard in sorted(path.glob("*.safetensors")):
        for name, shape in _header(shard).items():
            if name in shapes:
                raise StagingError(f"{shard} holds {name} a second time: {shard_of[name]} has it too")
            shapes[name], shard_of[name] = shape, shard.name
    if not shapes:
        raise StagingError(f"{path} holds no tensors in *.safetensors files")
    _require_index(path / _INDEX, shard_of)
    return shapes


def _header(shard: Path) -> Shapes:
    """Shapes from the header of one file. The library checks that header and file agree."""
    try:
        # Typed nowhere: the library's stubs leave out the methods.
        with cast(Any, safe_open(shard, framework="numpy")) as tensors:
            return {str(name): tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StagingError(f"{shard} is not a valid safetensors file: {error}") from error


def _require_index(path: Path, shard_of: Mapping[str, str]) -> None:
    """vLLM loads only the shards that the index names: it must name each tensor, in the shard that holds it."""
    if not path.exists():
        return
    weight_map = _read_object(path).get("weight_map")
    if weight_map != shard_of:
        names = cast(dict[str, Any], weight_map) if isinstance(weight_map, dict) else {}
        wrong = sorted(name for name in names.keys() | shard_of.keys() if names.get(name) != shard_of.get(name))
        raise StagingError(f"{path} disagrees with the shards' headers about {', '.join(wrong[:3]) or 'its weight_map'}")


def _require_same(shapes: Shapes, expected: Shapes, path: Path) -> None:
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise StagingError(
            f"{path} holds a different model than vLLM has loaded: {name} has shape {shapes.get(name)} instead of "
            f"{expected.get(name)} ({len(wrong)} tensors differ)"
        )


def _vocabulary_size(path: Path) -> int:
    config = _read_object(path)
    for block in (config, config.get("text_config")):
        size = cast(dict[str, Any], block).get("vocab_size") if isinstance(block, dict) else None
        if isinstance(size, int) and size > 0:
            return size
    raise StagingError(f"{path} has no vocab_size")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StagingError(f"{path} is missing") from error
    except ValueError as error:
        raise StagingError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise StagingError(f"{path} is not a JSON object")
    return cast(dict[str, Any], document)
