import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import datasets.config
import datasets.exceptions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import httpx

from spinrun_api.spec import DATA_SUFFIXES, Source
from spinrun_worker.data import sources
from spinrun_worker.data.sources import open_source
from spinrun_worker.errors import ConfigurationError, RunError

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": 'zwölf, "quoted"\nover lines', "answer": "12"}]


def rows_of(source: Path | str, **options: object) -> list[dict[str, object]]:
    table = open_source(Source(source=str(source), **options), block="data.prompts")  # pyright: ignore[reportArgumentType]
    return table.take(range(len(table)))


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def write_jsonl(path: Path) -> None:
    path.write_text(
        '\ufeff{"question": "1+1?", "answer": "2"}\n\n{"question": "zwölf, \\"quoted\\"\\nover lines", "answer": "12"}\n'
    )


def write_csv(path: Path) -> None:
    path.write_text('question,answer\n1+1?,2\n"zwölf, ""quoted""\nover lines",12\n', newline="")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def write_json(path: Path) -> None:
    path.write_text("\ufeff" + json.dumps(ROWS, indent=2))


def write_json_under_data(path: Path) -> None:
    path.write_text(json.dumps({"version": 1, "data": ROWS}))


def compressed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Writes in two members, as tools do that compress in blocks."""

    def write_gzip(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(packed(content[:30]) + packed(content[30:]))

    return write_gzip


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".jsonl", write_jsonl),
        (".csv", write_csv),
        (".parquet", write_parquet),
        (".json", write_json),
        (".json", write_json_under_data),
        (".json", write_jsonl),
        (".jsonl.gz", compressed(write_jsonl)),
        (".csv.gz", compressed(write_csv)),
        (".json.gz", compressed(write_json)),
        (".v1.2.json.gz", compressed(write_jsonl)),
    ],
)
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, suffix: str, write: Callable[[Path], None]):
    path = tmp_path / f"prompts{suffix}"
    write(path)
    assert rows_of(path) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', "line 3 must be a JSON object, got list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "line 1 is not JSON: .*utf-8"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("a.csv", b"a,b\n1,2\n3\n", "line 3 has 1 fields, the header has 2"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2 has 3 fields, the header has 2"),
        ("a.csv", b'a,b\n1,"2\n', "line 2 is not CSV"),
        ("a.csv", b"a,b\n1,2\n\xff,2\n", "line 3 is not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "is not Parquet"),
        ("a.txt", b"{}", "must end in .jsonl, .parquet, .csv, .json, .jsonl.gz, .csv.gz, .json.gz"),
        ("a.parquet.gz", b"", "must end in .jsonl"),
        ("a.gz", b"", "must end in .jsonl"),
        ("a.json", b"{}", "must be a list of objects, also one under data, got dict"),
        ("a.json", b"3", "must be a list of objects, also one under data, got int"),
        ("a.json", b'[{"a": 1}, 2]', "element 2 must be a JSON object, got int"),
        ("a.json", b'[{"a": 1},', "is not JSON: "),
        ("a.json", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.json", b"", "is not JSON: "),
        ("a.json", b"\xff\xfe", "is not JSON: .*utf-8"),
        ("a.json", b"[" * 100_000, "is not JSON: "),
        ("a.jsonl.gz", b'{"a": 1}\n', "is not gzip: Not a gzipped file"),
        ("a.jsonl.gz", b"", "is not gzip: it is empty"),
        ("a.jsonl.gz", packed(b'{"a": 1}\n' * 1000)[:40], "ends in the middle of its gzip data: copy it again"),
        ("a.jsonl.gz", packed(b'{"a": 1}\n' * 1000)[:-8] + b"\0" * 8, "is not gzip: CRC check failed"),
        ("a.jsonl.gz", packed(b"")[:10] + b"\x07" * 30, "is not gzip: .*invalid block type"),
        ("a.jsonl.gz", packed(b'{"a": 1}\n') + b"more", "is not gzip: Not a gzipped file"),
        ("a.jsonl.gz", packed(b'{"a": 1}\n{"a"'), "line 2 is not JSON"),
        ("a.csv.gz", packed(b"a,b\n1,2\n3\n"), "line 3 has 1 fields, the header has 2"),
        ("a.jsonl", packed(b'{"a": 1}\n'), "is compressed by gzip: add .gz to its name"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, want: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"data\.prompts\.source: .*{want}"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("/no/such/file.jsonl", "there is no file /no/such/file.jsonl where the trainer runs"),
        ("prompts.jsonl", "needs an absolute path"),
        ("./openai/gsm8k", "must be a Hub data set such as openai/gsm8k, the absolute path of a file, or arithmetic or letters"),
        ("a/b/c", "must be a Hub data set"),
    ],
)
def test_a_source_that_cannot_be_is_refused_with_a_remedy(source: str, want: str):
    with pytest.raises(ConfigurationError, match=f"data.prompts.source: .*{want}"):
        rows_of(source)


def test_every_end_of_a_name_that_the_api_promises_can_be_read():
    assert {suffix.removesuffix(".gz") for suffix in DATA_SUFFIXES} == sources.READERS.keys()


def test_a_single_record_is_a_row_of_its_own(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"question": "1+1?", "answer": "2"}')
    assert rows_of(tmp_path / "a.json") == ROWS[:1]


def test_a_gzip_file_that_unpacks_to_far_more_than_data_would_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "SMALL_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "bomb.jsonl.gz").write_bytes(packed(bytes(20 << 20)))
    with pytest.raises(
        ConfigurationError, match=r"bomb\.jsonl\.gz: unpacks to more than 1 MiB, from \d+ bytes: unpack it yourself"
    ):
        rows_of(tmp_path / "bomb.jsonl.gz")
    (tmp_path / "dense.jsonl.gz").write_bytes(packed(b'{"question": "what is this?"}\n' * 30_000))
    assert len(rows_of(tmp_path / "dense.jsonl.gz")) == 30_000


@pytest.mark.parametrize("dtype", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_narrow_floats_are_read_as_they_were_written(tmp_path: Path, dtype: pa.DataType):
    values = [0.1, -2.5, 42.0, None]
    table = pa.table(
        {"a": pa.array(np.array([0.1, -2.5, 42.0, 0.0], dtype.to_pandas_dtype()), dtype, mask=np.array([0, 0, 0, 1], bool))}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["a"] for row in rows_of(tmp_path / "a.parquet")] == values


def test_a_folder_is_not_a_file(tmp_path: Path):
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.source: .*Is a directory"):
        rows_of(folder)


def test_a_config_for_a_file_is_refused_rather_than_ignored(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.config: a file has no configurations"):
        rows_of(tmp_path / "a.jsonl", config="main")


def test_a_volume_that_fails_is_no_fault_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stale(path: Path) -> bytes:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(RunError, match="Stale file handle"):
        rows_of(tmp_path / "a.jsonl")


class FakeHub:
    """Stands in for the Hub, which tests cannot reach: fails as told, then returns rows."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls: list[tuple[object, ...]] = []

    def load_dataset(self, path: str, name: str | None, *, split: str) -> datasets.Dataset:
        self.calls.append((path, name, split))
        if self.failures:
            raise self.failures.pop(0)
        features = datasets.Features({"question": datasets.Value("string"), "label": datasets.ClassLabel(names=["A", "B"])})
        rows = [{"question": "x", "label": 1}, {"question": "y", "label": -1}, {"question": "z", "label": None}]
        return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    def install(*failures: Exception, offline: bool = False) -> FakeHub:
        fake = FakeHub(*failures)
        monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(sources, "HUB_WAIT_SECONDS", 0.001)
        return fake

    return install


def test_a_hub_data_set_is_asked_for_by_config_and_split_and_labels_are_given_by_name(hub: Callable[..., FakeHub]):
    fake = hub()
    rows = rows_of("openai/gsm8k", config="main", split="train[:10]")
    assert fake.calls == [("openai/gsm8k", "main", "train[:10]")]
    assert rows == [{"question": "x", "label": "B"}, {"question": "y", "label": None}, {"question": "z", "label": None}]


TRANSIENT = [
    ConnectionError("Couldn't reach 'x' on the Hub"),
    httpx.ConnectTimeout("timed out"),
    LocalEntryNotFoundError("cannot find the file, connection failed"),
    datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("failure", TRANSIENT, ids=lambda failure: type(failure).__name__)
def test_a_failing_network_is_tried_again_and_each_try_is_logged(
    hub: Callable[..., FakeHub], failure: Exception, caplog: pytest.LogCaptureFixture
):
    fake = hub(failure, failure)
    with caplog.at_level(logging.WARNING):
        assert len(rows_of("a/b")) == 3
    assert len(fake.calls) == 3
    assert caplog.text.count("trying again") == 2


def test_a_network_that_stays_away_ends_the_attempt_and_not_the_run(hub: Callable[..., FakeHub]):
    fake = hub(*[ConnectionError("no route to host")] * 10)
    with pytest.raises(RunError, match=r"data\.prompts\.source: data set a/b .* in 4 tries: no route to host"):
        rows_of("a/b")
    assert len(fake.calls) == 4


@pytest.mark.parametrize(
    "failure",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
        ValueError("Unknown split \"tarin\". Should be one of ['train']."),
        RuntimeError("Dataset scripts are no longer supported, but found b.py"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_data_set_that_is_not_there_fails_at_once(hub: Callable[..., FakeHub], failure: Exception):
    fake = hub(failure)
    with pytest.raises(ConfigurationError, match=r"data\.prompts: data set a/b .*correct source, config or split"):
        rows_of("a/b")
    assert len(fake.calls) == 1


def test_offline_without_a_cache_is_said_at_once(hub: Callable[..., FakeHub]):
    fake = hub(ConnectionError("OfflineModeIsEnabled"), offline=True)
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE"):
        rows_of("a/b")
    assert len(fake.calls) == 1
