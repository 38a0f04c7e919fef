"""OpenTelemetry traces of rank 0: a trace for each window, a span for each of its activities.

    window > publish, activate, checkpoint, generate, evaluate, score, reference, train …

They go by OTLP over HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT says; without it there are none. Headers, timeouts, sampling and
the like stand in OpenTelemetry's own variables. Spans that nobody takes are dropped, and never hold up a run.
"""

import logging
import os
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spinrun_api.run import SpinRun
from spinrun_protocol.logs import facts_of
from spinrun_protocol.wire import Progress
from spinrun_worker.errors import Preempted
from spinrun_worker.trainer.reporting.board import ProgressBoard

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE = "spinrun-trainer"
CLOSE_SECONDS = 3.0
"""Longest time to send what is left. Peers of a rank that failed wait for it."""


class WindowTracer:
    """Makes the activities of a board into spans below that of their window."""

    def __init__(self, provider: "TracerProvider", attempt: int) -> None:
        self._tracer = provider.get_tracer("spinrun")
        self._attempt = attempt
        self._number = -1
        self._window: Span | None = None

    @contextmanager
    def during(self, now: Progress) -> Generator[None]:
        """A span for an activity of this moment, while the block runs."""
        from opentelemetry.trace import StatusCode

        attributes = {"spinrun.window": now.window, "spinrun.step": now.step}
        span = self._tracer.start_span(now.activity, context=self._within(now.window), attributes=attributes)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Preempted):
                span.record_exception(error)
                span.set_status(StatusCode.ERROR, str(error))
            raise
        finally:
            span.end()

    def end(self) -> None:
        """End the window under way."""
        if self._window is not None:
            self._window.end()

    def _within(self, window: int) -> "Context":
        """The context of a window; another one than before begins with it."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        if window != self._number or self._window is None:
            self.end()
            attributes = {"spinrun.window": window, "spinrun.attempt": self._attempt}
            # An empty context: a window is a trace of its own, whatever goes on around it.
            self._window = self._tracer.start_span("window", context=Context(), attributes=attributes)
            self._number = window
        return set_span_in_context(self._window)


@contextmanager
def traced(board: ProgressBoard, run: SpinRun, attempt: int, environment: Mapping[str, str] = os.environ) -> Generator[None]:
    """Trace what the board shows while the block runs, where the environment asks for it. Raises nothing of its own."""
    if not any(environment.get(name) for name in ENDPOINTS):
        yield
        return
    try:
        provider = make_provider(run)
    except ImportError as error:
        logger.warning("no traces: %s; install it by pip install 'spinrun[otel]'", error)
        yield
        return
    tracer = WindowTracer(provider, attempt)
    board.observe(tracer.during)
    try:
        yield
    finally:
        tracer.end()
        _shut_down(provider)


def make_provider(run: SpinRun) -> "TracerProvider":
    """Where spans of this process go. Raises ImportError where the extra `otel` is not installed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    facts = {f"spinrun.{name}": str(value) for name, value in facts_of(run, uid=run.metadata.uid).items()}
    ours = Resource({SERVICE_NAME: SERVICE, **facts})
    # What the environment says wins, such as OTEL_SERVICE_NAME.
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # by us, for a limited time
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _shut_down(provider: "TracerProvider") -> None:
    """Send what is left, for a limited time."""
    thread = threading.Thread(target=provider.shutdown, name="tracing-shutdown", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        logger.warning("the last spans were not taken within %g s and are dropped", CLOSE_SECONDS)
