"""Rows from where they are: the Hub, a file, a built-in generator."""

import codecs
import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import httpx  # httpx or httpx2, whichever this version of it uses
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from spinrun_api.spec import DATA_SUFFIXES, Source
from spinrun_worker.data.generators import GENERATORS
from spinrun_worker.errors import ConfigurationError, RunError

logger = logging.getLogger(__name__)

Row = dict[str, Any]

HUB_WAIT_SECONDS = 5.0
"""Longest first pause between tries; the pauses double, up to a minute."""

HUB_ATTEMPTS = 4
"""The Hub's own client already retries each request for some 20 s."""

MAX_UNPACKED_BYTES = 8 << 30
"""Most bytes that a gzip file may unpack to."""

MAX_UNPACKED_RATIO = 100
"""The same as a multiple of the file's size. Text shrinks to a tenth or so, and nothing but a trap to a thousandth."""

SMALL_UNPACKED_BYTES = 256 << 20
"""What any file may unpack to."""

_GZIP_MAGIC = b"\x1f\x8b"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

csv.field_size_limit(2**26)


def _untyped(module: str) -> Any:
    """A large library without types, imported where it is needed: that takes a second, and most tests need none."""
    return import_module(module)


class Table(Protocol):
    """Rows of a data set, read on demand."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> list[Row]:
        """The rows with these numbers, in this order."""
        ...


def open_source(prompts: Source, *, block: str) -> Table:
    """The rows that a block of the spec names.

    Args:
        prompts: The spec's block.
        block: Where it stands in the spec, such as data.prompts, for messages.

    Raises:
        ConfigurationError: The source does not exist or cannot be understood.
        RunError: It cannot be reached now.
    """
    if prompts.is_generated:
        return MemoryTable(GENERATORS[prompts.source](prompts.config, prompts.split, block=block))
    path = Path(prompts.source)
    if path.is_absolute() or prompts.suffix:
        return _open_file(path, prompts, block)
    return _open_hub(prompts, block)


@dataclass(frozen=True)
class MemoryTable:
    """Rows held in memory. A row may lack columns that others have."""

    rows: Sequence[Row]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of all rows, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """The rows with these numbers."""
        return [self.rows[index] for index in indices]


# Files


def _open_file(path: Path, prompts: Source, block: str) -> MemoryTable:
    field = f"{block}.source"
    if not path.is_absolute():
        raise ConfigurationError(f"{field}: a file needs an absolute path, got {prompts.source!r}")
    if not prompts.suffix:
        raise ConfigurationError(f"{field}: a file must end in {', '.join(DATA_SUFFIXES)}, got {prompts.source!r}")
    if prompts.config is not None:
        raise ConfigurationError(f"{block}.config: a file has no configurations: remove it")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{field}: there is no file {path} where the trainer runs: correct the path or mount the file"
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigurationError(f"{field}: {path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise RunError(f"{field}: {path} cannot be read now: {error}") from error
    try:
        content = _unpacked(content) if path.suffix == ".gz" else _plain(content)
        return MemoryTable(list(READERS[prompts.suffix.removesuffix(".gz")](content)))
    except _BadFileError as error:
        raise ConfigurationError(f"{field}: {path}: {error}") from error


class _BadFileError(ValueError):
    """A file that does not hold what its name says."""


def _plain(content: bytes) -> bytes:
    if content.startswith(_GZIP_MAGIC):
        raise _BadFileError("is compressed by gzip: add .gz to its name")
    return content


def _unpacked(content: bytes) -> bytes:
    """What a gzip file holds, unless that is so much more than its size that it cannot be data."""
    if not content:
        raise _BadFileError("is not gzip: it is empty")
    limit = min(MAX_UNPACKED_BYTES, max(SMALL_UNPACKED_BYTES, MAX_UNPACKED_RATIO * len(content)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(limit + 1)
    except EOFError as error:
        raise _BadFileError("ends in the middle of its gzip data: copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _BadFileError(f"is not gzip: {error}") from error
    if len(unpacked) > limit:
        raise _BadFileError(
            f"unpacks to more than {limit >> 20} MiB, from {len(content)} bytes: unpack it yourself if that is right"
        )
    return unpacked


def _read_json(content: bytes) -> Iterator[Row]:
    """The rows of a list, also one under `data`, as some tools write it; and lines of JSON, which many name so."""
    try:
        document: object = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
            raise _BadFileError(f"is not JSON: {error}") from error
        yield from _read_jsonl(content)
        return
    fields = cast(Row, document) if isinstance(document, dict) else {}
    rows = fields.get("data", [document] if fields else document)
    if not isinstance(rows, list):
        raise _BadFileError(f"must be a list of objects, also one under data, got {type(rows).__name__}")
    for number, row in enumerate(cast("list[object]", rows), start=1):
        if not isinstance(row, dict):
            raise _BadFileError(f"element {number} must be a JSON object, got {type(row).__name__}")
        yield cast(Row, row)


def _read_jsonl(content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise _BadFileError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _BadFileError(f"line {number} must be a JSON object, got {type(row).__name__}")
        yield cast(Row, row)


def _read_csv(content: bytes) -> Iterator[Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise _BadFileError(f"line {number} is not UTF-8: {error.reason}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, list[str]())
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise _BadFileError(f"line {reader.line_num} has {len(fields)} fields, the header has {len(header)}")
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise _BadFileError(f"line {reader.line_num} is not CSV: {error}") from error


def _read_parquet(content: bytes) -> Iterator[Row]:
    pa, pq = _untyped("pyarrow"), _untyped("pyarrow.parquet")
    try:
        table = pq.read_table(pa.BufferReader(content))
        dtypes = {pa.float16(): "float16", pa.float32(): "float32"}
        narrow = {field.name: dtypes[field.type] for field in table.schema if field.type in dtypes}
        yield from (row | _as_written(row, narrow) for row in table.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise _BadFileError(f"is not Parquet: {error}") from error


def _as_written(row: Row, narrow: Mapping[str, str]) -> Row:
    """The row's floats of 16 and 32 bits as what they were made from: 0.1, not 0.10000000149011612.

    Args:
        row: The row.
        narrow: The dtype of each column that holds such floats.
    """
    numpy = _untyped("numpy")
    return {name: float(str(numpy.dtype(dtype).type(row[name]))) for name, dtype in narrow.items() if row[name] is not None}


READERS: Mapping[str, Callable[[bytes], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".json": _read_json,
}


# The Hub


class HubTable:
    """A data set of the Hub, on disk. Class labels appear as their names."""

    def __init__(self, dataset: Any) -> None:
        label = _untyped("datasets").ClassLabel
        self._dataset = dataset
        self._labels = {name: feature for name, feature in dataset.features.items() if isinstance(feature, label)}
        dtypes = {name: getattr(feature, "dtype", "") for name, feature in dataset.features.items()}
        self._narrow = {name: dtype for name, dtype in dtypes.items() if dtype in ("float16", "float32")}

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """The rows with these numbers."""
        return [self._named(row) for row in self._dataset.select(indices).to_list()]

    def _named(self, row: Row) -> Row:
        # -1 is how data sets mark a hidden label.
        names: dict[str, str | None] = {
            name: label.int2str(row[name]) for name, label in self._labels.items() if row[name] not in (None, -1)
        }
        return row | dict.fromkeys(self._labels) | names | _as_written(row, self._narrow)


def _open_hub(prompts: Source, block: str) -> HubTable:
    """Raises ConfigurationError when the Hub has no such data set, RunError when it could not be fetched for minutes."""
    if not _HUB_ID.fullmatch(prompts.source):
        raise ConfigurationError(
            f"{block}.source: must be a Hub data set such as openai/gsm8k, the absolute path of a file, or "
            f"{' or '.join(GENERATORS)}; got {prompts.source!r}"
        )
    datasets = _untyped("datasets")
    offline: bool = datasets.config.HF_HUB_OFFLINE
    name = f"data set {prompts.source} (config {prompts.config or 'default'}, split {prompts.split})"
    attempts = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(1 if offline else HUB_ATTEMPTS),
        wait=wait_random_exponential(multiplier=HUB_WAIT_SECONDS, max=60),
        before_sleep=lambda state: logger.warning("%s: %s; trying again", name, state.outcome and state.outcome.exception()),
        reraise=True,
    )
    try:
        return HubTable(attempts(datasets.load_dataset, prompts.source, prompts.config, split=prompts.split))
    except Exception as error:
        if not _is_transient(error):
            remedy = "correct source, config or split; a private data set needs HF_TOKEN in the trainer"
            raise ConfigurationError(f"{block}: {name}: {error}: {remedy}") from error
        if offline:
            raise ConfigurationError(
                f"{block}.source: {name} is not in the cache and HF_HUB_OFFLINE forbids fetching it: unset it or name a file"
            ) from error
        raise RunError(f"{block}.source: {name} could not be fetched in {HUB_ATTEMPTS} tries: {error}") from error


def _is_transient(error: BaseException) -> bool:
    """Whether a failure of the Hub's libraries is due to the network, the Hub or the disk, not to what was requested."""
    if isinstance(error, LocalEntryNotFoundError):  # how they report that a download failed
        return True
    failures = (OSError, httpx.HTTPError, _untyped("datasets").exceptions.DatasetsError)
    return isinstance(error, failures) and not isinstance(error, FileNotFoundError)
