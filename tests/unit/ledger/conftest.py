"""A ledger in a temporary folder, and a short way to put directories into it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spinrun_protocol.ledger import Kind, Manifest, MetricsLine
from spinrun_worker.ledger import LedgerWriter, durable, write_file

UID = "0a1b2c3d-0000-4000-8000-000000000001"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5, "tokenizer/vocab.txt": b"a\nb\n"}

Put = Callable[..., Manifest]


@pytest.fixture
def uid() -> str:
    return UID


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "team" / "run-0a1b2c3d"


@pytest.fixture
def writer(root: Path) -> LedgerWriter:
    """Attempt 1 of the run, owner of its ledger."""
    writer = LedgerWriter(root, UID, attempt=1)
    writer.claim()
    return writer


@pytest.fixture
def put() -> Put:
    """put(writer, kind, number, files={name: content}, …) commits a directory."""

    def put(
        writer: LedgerWriter,
        kind: Kind,
        number: int,
        files: dict[str, bytes] = FILES,
        *,
        step: int | None = None,
        version: int | None = None,
        parent: str | None = None,
    ) -> Manifest:
        directory = writer.begin(kind, number)
        entries = [write_file(directory / name, [content], root=directory) for name, content in files.items()]
        step, version = number if step is None else step, number if version is None else version
        return writer.commit(kind, number, entries, step=step, version=version, parent=parent)

    return put


@pytest.fixture(autouse=True)
def observer_is_reset() -> Iterator[None]:
    yield
    durable.observe = None


@pytest.fixture
def operations() -> list[tuple[str, Path]]:
    """Fills with every change made to the volume from here on: (operation, path)."""
    log: list[tuple[str, Path]] = []
    durable.observe = lambda operation, path: log.append((operation, path))
    return log


@pytest.fixture
def step_line() -> Callable[..., MetricsLine]:
    """step_line(step, attempt=1, event="step", window=0, **values) makes a line of metrics."""

    def step_line(step: int, *, attempt: int = 1, event: str = "step", window: int = 0, **values: float) -> MetricsLine:
        fields = {
            "event": event,
            "attempt": attempt,
            "time": 1.5,
            "window": window,
            "step": step,
            "version": window,
            "values": values,
        }
        return MetricsLine.model_validate(fields)

    return step_line
