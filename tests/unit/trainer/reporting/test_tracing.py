"""How spans show what became of an activity."""

import logging
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from spinrun_api.documents import parse_run
from spinrun_protocol.wire import Progress
from spinrun_worker.errors import Preempted, RunError
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.tracing import WindowTracer, traced
from unit.api.invalid_runs import MINIMAL


@pytest.fixture
def board() -> ProgressBoard:
    return ProgressBoard(Progress(uid="u", attempt=1, activity="starting", window=3, windows=8, step=12, total_steps=32))


@pytest.fixture
def exporter(board: ProgressBoard) -> InMemorySpanExporter:
    """What the board's activities become."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    board.observe(WindowTracer(provider, attempt=2).during)
    return exporter


def only_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def test_an_activity_knows_where_the_run_is(board: ProgressBoard, exporter: InMemorySpanExporter) -> None:
    with board.during("generate"):
        pass
    span = only_span(exporter)
    assert (span.name, span.status.status_code) == ("generate", StatusCode.UNSET)
    assert span.attributes == {"spinrun.window": 3, "spinrun.step": 12}


def test_a_window_ends_where_the_next_begins(board: ProgressBoard, exporter: InMemorySpanExporter) -> None:
    for window in (3, 3, 4):
        board.update(window=window)
        with board.during("train"):
            pass
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["train", "train", "window", "train"]
    first, second, window, other = exporter.get_finished_spans()
    assert window.attributes == {"spinrun.window": 3, "spinrun.attempt": 2}
    first, second, window, other = (span.get_span_context() for span in (first, second, window, other))
    assert first.trace_id == second.trace_id == window.trace_id != other.trace_id


def test_a_failure_is_in_the_span_of_its_activity(board: ProgressBoard, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(RunError), board.during("reference"):
        raise RunError("its weights are broken")
    span = only_span(exporter)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "its weights are broken")
    assert [event.name for event in span.events] == ["exception"]


def test_being_asked_to_stop_is_no_failure(board: ProgressBoard, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(Preempted), board.during("train"):
        raise Preempted("stopped during step 12")
    assert only_span(exporter).status.status_code is StatusCode.UNSET


def test_nobody_who_asks_for_no_traces_pays_for_them() -> None:
    code = "import sys, spinrun_worker.trainer.reporting.tracing as _; print(*[n for n in sys.modules if 'opentelemetry' in n])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_missing_package_is_said_with_its_remedy(
    board: ProgressBoard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    caplog.set_level(logging.WARNING)
    with traced(board, parse_run(MINIMAL), 1, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}), board.during("train"):
        pass
    assert "pip install 'spinrun[otel]'" in caplog.text
