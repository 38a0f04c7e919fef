"""A manifest is a document from a volume or a network: whatever it says, nothing outside its directory is touched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spinrun_protocol.ledger import FileEntry, Manifest
from spinrun_worker.ledger import TornError, content_digest, read_manifest
from spinrun_worker.ledger.files import MAX_DOCUMENT_BYTES

HASH = "0123456789abcdef" * 2

UNSAFE_PATHS = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a//b",
    "./a",
    "a/.",
    "..",
    ".",
    "a/",
    "",
    "a\\b",
    "a\nb",
    "a\0b",
    "\x1b[2Jx",
    "MANIFEST.json",
    "x" * 1025,
]


@pytest.mark.parametrize("path", UNSAFE_PATHS, ids=repr)
def test_entry_must_name_a_file_below_its_directory(path):
    with pytest.raises(ValidationError):
        FileEntry(path=path, size=1, xxh3_128=HASH)


@pytest.mark.parametrize("path", ["a", ".metadata", "a/b.c", "__0_0.distcp", "..a", "a b", "ä/ö", "inner/MANIFEST.json"])
def test_plain_relative_names_are_accepted(path):
    assert FileEntry(path=path, size=1, xxh3_128=HASH).path == path


Edit = Callable[[dict[str, Any]], object]


def rehash(document: dict[str, Any]) -> None:
    """Give an edited manifest the digest that goes with it, as somebody who forges one would."""
    files = [FileEntry.model_construct(**entry) for entry in document["files"]]
    document["digest"] = content_digest(document["kind"], document["number"], document["uid"], files)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda document: document["files"][0].update(path="../../../etc/passwd"), id="path outside"),
        pytest.param(lambda document: document["files"][0].update(path="/etc/passwd"), id="absolute path"),
        pytest.param(lambda document: document["files"][0].update(xxh3_128=HASH.upper()), id="upper-case hash"),
        pytest.param(lambda document: document["files"][0].update(xxh3_128=HASH + "\n"), id="hash with a line end"),
        pytest.param(lambda document: document["files"][0].update(size=-1), id="negative size"),
        pytest.param(lambda document: document["files"].reverse(), id="files out of order"),
        pytest.param(lambda document: document["files"].append(document["files"][-1]), id="file named twice"),
        pytest.param(lambda document: document.update(number=-1), id="negative number"),
        pytest.param(lambda document: document.update(attempt=0), id="attempt 0"),
        pytest.param(lambda document: document.update(kind="model"), id="unknown kind"),
        pytest.param(lambda document: document.update(format=2), id="later format"),
    ],
)
def test_invalid_manifest_is_torn(writer, put, edit: Edit):
    put(writer, "weights", 1)
    path = writer.layout.weights(1) / "MANIFEST.json"
    document = json.loads(path.read_bytes())
    edit(document)
    rehash(document)
    path.write_text(json.dumps(document))

    with pytest.raises(TornError, match=r"v000001/MANIFEST\.json is not a valid Manifest"):
        writer.manifest("weights", 1)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda document: document["files"][0].update(xxh3_128=HASH), id="hash"),
        pytest.param(lambda document: document["files"][0].update(size=3), id="size"),
        pytest.param(lambda document: document.update(uid="another"), id="uid"),
        pytest.param(lambda document: document["files"].pop(), id="file left out"),
        pytest.param(lambda document: document.update(digest=document["digest"].upper()), id="digest in upper case"),
    ],
)
def test_manifest_whose_digest_does_not_fit_is_torn(writer, put, edit: Edit):
    put(writer, "weights", 1)
    path = writer.layout.weights(1) / "MANIFEST.json"
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))

    with pytest.raises(TornError, match="digest"):
        writer.manifest("weights", 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b'{"number": 1e999}', b"{}"],
    ids=["empty", "null", "list", "not UTF-8", "deep list", "deep object", "huge number", "infinite number", "no fields"],
)
def test_anything_else_is_torn(tmp_path: Path, content: bytes):
    (tmp_path / "MANIFEST.json").write_bytes(content)

    with pytest.raises(TornError, match=r"MANIFEST\.json is not a valid Manifest"):
        read_manifest(tmp_path)


def test_manifest_of_any_length_is_not_read_into_memory(tmp_path: Path):
    with (tmp_path / "MANIFEST.json").open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES * 1000)  # sparse

    with pytest.raises(TornError, match="is larger than"):
        read_manifest(tmp_path)


def test_fields_of_a_later_version_are_ignored(writer, put):
    want = put(writer, "weights", 1)
    path = writer.layout.weights(1) / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"signature": "x"}))

    assert writer.manifest("weights", 1) == want


def test_digest_tells_fields_apart():
    def digest(
        kind: Any = "weights", number: int = 1, uid: str = "u", path: str = "a", size: int = 1, content: str = HASH
    ) -> str:
        return content_digest(kind, number, uid, [FileEntry(path=path, size=size, xxh3_128=content)])

    digests = [
        digest(),
        digest(kind="window"),
        digest(number=11),
        digest(uid="u1"),
        digest(path="b"),
        digest(size=11),
        digest(content=HASH[::-1]),
        content_digest("weights", 1, "u", []),
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 32 for digest in digests)


def test_digest_of_a_manifest_is_stable():
    entry = FileEntry(path="a", size=1, xxh3_128=HASH)
    manifest = Manifest(
        kind="weights",
        number=1,
        uid="u",
        version=1,
        step=2,
        attempt=1,
        files=(entry,),
        digest=content_digest("weights", 1, "u", [entry]),
    )

    # Written by every release: a change here makes every ledger unreadable.
    assert manifest.digest == "937eb1fe4ff0a2cd8d9415bf945e09be"
