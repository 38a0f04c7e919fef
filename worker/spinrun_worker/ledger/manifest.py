"""MANIFEST.json: what it says of a directory, and whether the directory agrees."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from spinrun_protocol.ledger import MANIFEST, FileEntry, Kind, Manifest
from spinrun_worker.ledger.errors import TornError
from spinrun_worker.ledger.files import hash_file, list_files, read_record


def content_digest(kind: Kind, number: int, uid: str, files: Sequence[FileEntry]) -> str:
    """Identity of a directory's content (Manifest.digest): xxh3-128, as 32 hexadecimal digits.

    Args:
        kind: What the directory holds.
        number: Its version, window or step.
        uid: The run's uid.
        files: Its files, sorted by path.
    """
    content = [kind, number, uid, [[entry.path, entry.size, entry.xxh3_128] for entry in files]]
    return xxhash.xxh3_128_hexdigest(json.dumps(content, separators=(",", ":")).encode())


def read_manifest(directory: Path) -> Manifest:
    """The manifest in a directory, checked against its own digest.

    Raises:
        TornError: The manifest is missing or not valid, or its digest is not that of the files it lists.
        LedgerUnavailableError: The volume does not let it be read.
    """
    manifest = read_record(directory / MANIFEST, Manifest)
    if manifest is None:
        raise TornError(f"{directory} has no {MANIFEST}: it is being written, or its writer died; it must be written again")
    if manifest.digest != content_digest(manifest.kind, manifest.number, manifest.uid, manifest.files):
        raise TornError(f"{directory / MANIFEST} has a digest that is not that of the files it lists")
    return manifest


def check_content(directory: Path, files: Sequence[FileEntry], *, hashes: bool) -> None:
    """Check that a directory holds these files and no others, with these sizes and, on request, this content.

    Args:
        directory: The directory; its manifest is ignored.
        files: What it should hold.
        hashes: Whether to read and compare the content as well.

    Raises:
        TornError: Something differs; the message names the first such file.
    """
    found = list_files(directory)
    found.pop(MANIFEST, None)
    listed = {entry.path for entry in files}
    for path in found:
        if path not in listed:
            raise TornError(f"{directory / path} is not in {MANIFEST}")
    for entry in files:
        if entry.path not in found:
            raise TornError(f"{directory / entry.path} is missing")
        if found[entry.path] != entry.size:
            raise TornError(f"{directory / entry.path} has {found[entry.path]} bytes, {MANIFEST} says {entry.size}")
    if hashes:
        for entry in files:
            if hash_file(directory / entry.path, root=directory) != entry:
                raise TornError(f"{directory / entry.path} has different content than {MANIFEST} says (xxh3-128 differs)")


def superseded(manifests: Iterable[Manifest]) -> set[int]:
    """Numbers of those weights, or of those checkpoints, that a newer attempt has superseded.

    An attempt that resumes from an earlier step writes everything after it again. What an older attempt wrote beyond that step
    stays until then, and belongs to a history that the run has abandoned.

    Args:
        manifests: Manifests of one kind, in any order.
    """
    newest_attempt = 0
    stale: set[int] = set()
    for manifest in sorted(manifests, key=lambda manifest: manifest.number):
        if manifest.attempt < newest_attempt:
            stale.add(manifest.number)
        newest_attempt = max(newest_attempt, manifest.attempt)
    return stale
