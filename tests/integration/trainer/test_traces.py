"""Traces of a real trainer, as a receiver of OTLP decodes them."""

import json
import time
from pathlib import Path

from spinrun_worker.ledger import read_metrics
from support.otlp import Span, receiving
from support.trainer_process import UID, Attempts

WINDOW = ["publish", "activate", "checkpoint", "generate", "evaluate", "score", "reference", "train"]


def test_a_window_is_a_trace_with_a_span_for_each_activity(attempts: Attempts, tmp_path: Path) -> None:
    with receiving() as receiver:
        attempts.environment.update(
            {"NO_PROXY": "127.0.0.1", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_RESOURCE_ATTRIBUTES": "team=blue"}
        )
        assert attempts.run(tmp_path / "ledger") == 0, attempts.log(1).read_text()

    assert receiver.paths == {"/v1/traces"}
    roots = sorted((span for span in receiver.spans if not span.parent), key=lambda span: span.start)
    # Two windows, and the version that comes after them.
    assert [(root.name, root.attributes["spinrun.window"]) for root in roots] == [("window", 0), ("window", 1), ("window", 2)]
    assert len({root.trace for root in roots}) == 3
    second = activities(receiver.spans, roots[1])
    assert [span.name for span in second] == [*WINDOW, "train"]
    assert [span.attributes["spinrun.step"] for span in second if span.name == "train"] == [2, 3]
    assert all(span.attributes["spinrun.window"] == 1 for span in second)
    assert [span.name for span in activities(receiver.spans, roots[2])] == ["publish", "activate", "checkpoint", "evaluate"]
    for root in roots:
        assert all(root.start <= span.start <= span.end <= root.end for span in activities(receiver.spans, root))
    want = {"service.name": "spinrun-trainer", "spinrun.run": "tiny", "spinrun.namespace": "local", "spinrun.uid": UID}
    assert all((want | {"team": "blue"}).items() <= span.resource.items() for span in receiver.spans)
    assert not any(span.failed for span in receiver.spans)
    # The spans tell the same durations as the figures.
    figures = {line.window: line.values for line in read_metrics(tmp_path / "ledger" / "metrics.jsonl") if line.event == "window"}
    trained = sum(span.end - span.start for span in second if span.name == "train") / 1e9
    assert abs(trained - figures[1]["timing/train_seconds"]) < 0.1


def activities(spans: list[Span], root: Span) -> list[Span]:
    return sorted((span for span in spans if span.parent == root.id and span.trace == root.trace), key=lambda span: span.start)


def test_a_collector_that_is_not_there_holds_up_nothing(attempts: Attempts, tmp_path: Path) -> None:
    attempts.environment.update({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    began = time.monotonic()
    assert attempts.run(tmp_path / "ledger") == 0, attempts.log(1).read_text()
    assert time.monotonic() - began < 60
    assert json.loads(attempts.termination_message(1).read_text())["result"] == "Complete"
