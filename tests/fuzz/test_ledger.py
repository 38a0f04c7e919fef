"""The ledger's readers are given damaged and odd files: they read them or raise an error of the ledger, and change nothing."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from fuzz.shell import assert_ended_well, spinrun
from fuzz.strategies import Content, damaged, fuzz, integers, mutated, nested, odd_floats, plain_texts, texts, trees
from spinrun_protocol.ledger import MANIFEST, FileEntry, Kind, Owner, RunRecord
from spinrun_worker.ledger import (
    KINDS,
    Layout,
    Ledger,
    LedgerError,
    TornError,
    find_ledgers,
    hash_file,
    read_manifest,
    read_metrics,
    read_pairs,
    read_rates,
    read_safetensors,
    read_samples,
    verify_tree,
)
from spinrun_worker.ledger.files import read_record
from spinrun_worker.ledger.window import PAIRS_SCHEMA, SAMPLES_SCHEMA
from spinrun_worker.trainer.storage.checkpoint import RandomState, TrainerState

Json = Any

RUN = Path(__file__).parents[1] / "integration" / "trainer" / "begun_before"
"""The folder of a run that a trainer has really begun."""
UID = json.loads((RUN / "ledger" / "OWNER.json").read_text())["uid"]
LONGEST_SECONDS = 5
"""Of processor time for all readers together; the whole run has 370 KB."""

FILES = sorted(path.relative_to(RUN / "ledger") for path in (RUN / "ledger").rglob("*") if path.is_file())
DOCUMENTS = [path for path in FILES if path.suffix == ".json"]
PARQUET = [path for path in FILES if path.suffix == ".parquet"]
TENSORS = [path for path in FILES if path.suffix == ".safetensors"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger, of which a test changes one file at a time."""
    root = tmp_path_factory.mktemp("run") / "ledger"
    shutil.copytree(RUN / "ledger", root)
    return root


def read(root: Path, changed: Path) -> None:
    """Call every reader of the ledger, and those of a file of it. All that one may raise is an error of the ledger."""
    started, messages = time.process_time(), list[str]()
    layout, ledger = Layout(root), Ledger(root, UID)
    calls: list[Callable[[], object]] = [
        lambda: find_ledgers(root),
        lambda: verify_tree(root),
        lambda: read_metrics(layout.metrics),
        lambda: read_record(layout.owner, Owner),
        lambda: read_record(layout.run_record, RunRecord),
        lambda: read_manifest((root / changed).parent),
        *(lambda kind=kind: ledger.numbers(kind) for kind in KINDS),
        *(lambda reader=reader: reader(root / changed) for reader in READERS_OF_FILES.get(changed.suffix, [])),
    ]
    for call in calls:
        try:
            call()
        except LedgerError as error:
            messages.append(str(error))
    assert all(messages), "an error without a message"
    assert time.process_time() - started < LONGEST_SECONDS


READERS_OF_FILES: dict[str, list[Callable[[Path], object]]] = {
    ".parquet": [read_samples, read_pairs, read_rates],
    ".safetensors": [lambda path: all_tensors(path)],
    ".json": [lambda path: read_record(path, TrainerState), lambda path: read_record(path, RandomState)],
}


def all_tensors(path: Path) -> None:
    """All tensors of a file whose manifest agrees with it: forged rather than damaged."""
    for _ in read_safetensors(path, hash_file(path)):
        pass


def read_with(root: Path, path: Path, content: bytes) -> None:
    """Read the ledger while a file of the ledger has another content, with a command, too."""
    kept = (root / path).read_bytes()
    try:
        (root / path).write_bytes(content)
        read(root, path)
        # What they print differs in its form alone.
        command = (["ls"], ["verify"], ["verify", "--output", "json"])[len(content) % 3]
        assert_ended_well(spinrun("ledger", command[0], str(root), *command[1:]))
        assert (root / path).read_bytes() == content, "a reader has changed it"
    finally:
        (root / path).write_bytes(kept)


def original(path: Path) -> bytes:
    return (RUN / "ledger" / path).read_bytes()


@st.composite
def files(draw: st.DrawFn, paths: list[Path], contents: Callable[[Path], st.SearchStrategy[bytes]]) -> tuple[Path, bytes]:
    path = draw(st.sampled_from(paths))
    return path, Content(draw(contents(path)))


def to_json(document: Json) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


@fuzz(60, file=files(FILES, lambda path: damaged(st.just(original(path)))))
def test_damaged_files(root: Path, file: tuple[Path, bytes]) -> None:
    read_with(root, *file)


@fuzz(60, file=files(DOCUMENTS, lambda path: mutated(st.just(json.loads(original(path)))).map(to_json)))
def test_documents_with_odd_values(root: Path, file: tuple[Path, bytes]) -> None:
    read_with(root, *file)


def lines_of(path: Path) -> st.SearchStrategy[bytes]:
    rows = [json.loads(row) for row in original(path).splitlines()]
    values = trees() | odd_floats | integers
    return st.lists(mutated(st.sampled_from(rows), values).map(to_json), max_size=4).map(lambda lines: b"\n".join([*lines, b""]))


@fuzz(30, file=files([Path("metrics.jsonl")], lines_of))
def test_figures_with_odd_values(root: Path, file: tuple[Path, bytes]) -> None:
    read_with(root, *file)


def parquet(schema: Any, rows: list[Json]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def of_the_same_types(schema: Any) -> st.SearchStrategy[bytes]:
    """A table of a schema with odd values."""
    row = st.fixed_dictionaries({field.name: of_type(field.type, nullable=field.nullable, name=field.name) for field in schema})
    return st.lists(row, max_size=4).map(lambda rows: parquet(schema, rows))


def of_type(kind: Any, *, nullable: bool, name: str) -> st.SearchStrategy[Json]:
    if pa.types.is_list(kind):
        found = st.lists(of_type(kind.value_type, nullable=False, name=name), max_size=3)
    elif pa.types.is_struct(kind):
        found = st.fixed_dictionaries(
            {field.name: of_type(field.type, nullable=field.nullable, name=field.name) for field in kind}
        )
    elif pa.types.is_integer(kind):
        found = st.integers(-(2**31), 2**31 - 1)
    elif pa.types.is_floating(kind):
        found = odd_floats
    elif name == "columns":
        found = (
            plain_texts | trees(keys=texts).map(json.dumps) | st.sampled_from([json.dumps(nested(900)), "[" * 20_000, "9" * 5000])
        )
    elif name == "finish_reason":
        found = st.sampled_from(["stop", "length", "", "abort"])
    else:
        found = plain_texts
    return st.none() | found if nullable else found


def of_other_columns(schema: Any) -> st.SearchStrategy[bytes]:
    """A table without some of the columns, or with other types."""
    kinds = st.sampled_from([pa.string(), pa.int64(), pa.float64(), pa.null(), pa.list_(pa.int64())])
    changes = st.dictionaries(st.sampled_from(schema.names), st.none() | kinds, min_size=1)
    return changes.map(
        lambda changed: parquet(
            pa.schema([(field.name, changed.get(field.name) or field.type) for field in schema if changed.get(field.name, 1)]), []
        )
    )


def tables(path: Path) -> st.SearchStrategy[bytes]:
    schema = SAMPLES_SCHEMA if path.name == "samples.parquet" else PAIRS_SCHEMA
    return of_the_same_types(schema) | of_other_columns(schema)


@fuzz(60, file=files(PARQUET, tables))
def test_tables_with_odd_values(root: Path, file: tuple[Path, bytes]) -> None:
    read_with(root, *file)


def headers(path: Path) -> st.SearchStrategy[bytes]:
    """A file of tensors with another header, or a longer or shorter one than it says."""
    content = original(path)
    size = int.from_bytes(content[:8], "little")
    document, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    values = trees() | st.lists(st.sampled_from([-1, 0, 1, 4, 0.5, 2**62, True, "8"]), max_size=3)
    small = {"__metadata__": {}, "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    texts_of = mutated(st.sampled_from([document, small]), values).map(to_json) | st.sampled_from([b"[" * 20_000, b"9" * 5000])
    bodies = st.sampled_from([body, b"", b"\0" * 8, b"\0" * 16])
    lengths = st.just(None) | st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**64 - 1])
    return st.builds(
        lambda text, rest, length: (len(text) if length is None else length).to_bytes(8, "little") + text + rest,
        texts_of,
        bodies,
        lengths,
    )


@fuzz(60, file=files(TENSORS, headers))
def test_tensors_with_odd_headers(root: Path, file: tuple[Path, bytes]) -> None:
    read_with(root, *file)


ODD_SHAPES: list[Json] = [
    [-1, -2],
    [-2, -1],
    [2.0],
    [0.5, 4],
    [1, 2],
    [True, 2],
    [2, 1, 1],
    [2**40, 0],
    [-0, 5],
    ["2"],
    "2",
    None,
    {"2": 1},
]


@fuzz(20, shape=st.sampled_from(ODD_SHAPES) | st.lists(st.sampled_from([-2, -1, 0, 1, 2, 0.5, 2.0, 4]), max_size=4))
def test_tensors_of_odd_shapes(tmp_path: Path, shape: Json) -> None:
    header = to_json({"__metadata__": {}, "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}})
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    with suppress(TornError):
        all_tensors(path)


OBSTACLES: dict[str, Callable[[Path, Path], object]] = {
    "folder": lambda path, _: path.mkdir(),
    "pipe": lambda path, _: os.mkfifo(path),
    "link to what was there": lambda path, kept: path.symlink_to(kept),
    "link to nothing": lambda path, _: path.symlink_to("nowhere"),
    "link to itself": lambda path, _: path.symlink_to(path.name),
    "link out of the ledger": lambda path, _: path.symlink_to("/etc/passwd"),
    "link to zeros without end": lambda path, _: path.symlink_to("/dev/zero"),
    "nothing": lambda *_: None,
}
OPTIONAL = [Path("run.json"), Path("metrics.jsonl")]


@fuzz(20, path=st.sampled_from(FILES), obstacle=st.sampled_from(sorted(OBSTACLES)))
def test_what_is_not_a_file(root: Path, path: Path, obstacle: str) -> None:
    kept = (root / path).rename(root.parent / "kept")
    try:
        OBSTACLES[obstacle](root / path, kept)
        read(root, path)
        ended = spinrun("ledger", "verify", str(root))
        assert_ended_well(ended)
        # A link to nothing counts as nothing.
        may_be_sound = path in OPTIONAL and obstacle in ("nothing", "link to nothing", "link to itself")
        assert ended.code == 1 or may_be_sound
    finally:
        with suppress(FileNotFoundError, IsADirectoryError):
            (root / path).unlink()
        with suppress(FileNotFoundError):
            (root / path).rmdir()
        kept.rename(root / path)


@fuzz(
    20,
    name=plain_texts | st.sampled_from(["v1", "v0000001", "v٠٠٠٠٠١", "step-999999999999999999", "000001 ", "-00001"]),
    kind=st.sampled_from(KINDS),
)
def test_folders_of_any_name(root: Path, name: str, kind: Kind) -> None:
    stranger = Layout(root).folder(kind) / (name.replace("/", "").replace("\0", "")[:80] or "x")
    if stranger.exists():
        return
    stranger.mkdir(parents=True)
    try:
        read(root, FILES[0])
        assert_ended_well(spinrun("ledger", "verify", str(root)))
    finally:
        stranger.rmdir()


PATHS = ["..", ".", "../x", "/etc/passwd", "a/../../x", "a/..", "a//b", "./x", "x/", MANIFEST, "a\\..\\b", "x\0", "x\n", "a/b"]
parts = st.sampled_from(["..", ".", "", "a", "x.json", MANIFEST])
paths = st.lists(parts, max_size=4).map("/".join) | st.sampled_from(PATHS)


@fuzz(60, entry=mutated(st.just({"path": "config.json", "size": 2, "xxh3_128": "0" * 32}), paths))
def test_entries_name_files_inside_their_folder_alone(entry: Json) -> None:
    try:
        accepted = FileEntry.model_validate_json(to_json(entry))
    except ValueError:
        return
    folder = Path("/ledger/weights/v000001")
    assert Path(os.path.normpath(folder / accepted.path)).is_relative_to(folder)
    assert Path(os.path.normpath(folder / accepted.path)) not in (folder, folder / MANIFEST)
