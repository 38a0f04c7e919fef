"""OpenTelemetry traces of rank 0: a trace for each window, a span for each of its activities.

    window > publish, activate, checkpoint, generate, evaluate, score, reference, train …

They are sent by OTLP over HTTP to OTEL_EXPORTER_OTLP_ENDPOINT; without it there are none. Headers, timeouts, sampling and the
like are set by OpenTelemetry's own variables. Spans that no collector accepts are dropped, and never delay a run.
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
"""Time limit for sending the remaining spans. Peers of a failed rank wait for it."""


class WindowTracer:
    """Turns the activities of a board into spans below that of their window."""

    def __init__(self, provider: "TracerProvider", attempt: int) -> None:
        self._tracer = provider.get_tracer("spinrun")
        self._attempt = attempt
        self._number = -1
        self._window: Span | None = None

    @contextmanager
    def during(self, now: Progress) -> Generator[None]:
        """A span for the current activity, while the block runs."""
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
        """End the current window's span."""
        if self._window is not None:
            self._window.end()

    def _within(self, window: int) -> "Context":
        """The context of a window; a new window starts a new trace."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        if window != self._number or self._window is None:
            self.end()
            attributes = {"spinrun.window": window, "spinrun.attempt": self._attempt}
            # An empty context: a window is a trace of its own, whatever surrounds it.
            self._window = self._tracer.start_span("window", context=Context(), attributes=attributes)
            self._number = window
        return set_span_in_context(self._window)


@contextmanager
def traced(board: ProgressBoard, run: SpinRun, attempt: int, environment: Mapping[str, str] = os.environ) -> Generator[None]:
    """Trace what the board shows while the block runs, if the environment asks for it. Raises nothing of its own."""
    if not any(environment.get(name) for name in ENDPOINTS):
        yield
        return
    try:
        provider = make_provider(run)
    except ImportError as error:
        logger.warning("no traces: %s; install it with pip install 'spinrun[otel]'", error)
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
    """The destination of this process's spans.

    Raises:
        ImportError: The extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    facts = {f"spinrun.{name}": str(value) for name, value in facts_of(run, uid=run.metadata.uid).items()}
    ours = Resource({SERVICE_NAME: SERVICE, **facts})
    # The environment takes precedence, such as OTEL_SERVICE_NAME.
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # we shut it down, with a time limit
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _shut_down(provider: "TracerProvider") -> None:
    """Send the remaining spans, with a time limit."""
    thread = threading.Thread(target=provider.shutdown, name="tracing-shutdown", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        logger.warning("the last spans were not accepted within %g s and are dropped", CLOSE_SECONDS)
