"""The agent's HTTP interface: vLLM's /classify and /score for those with the token, and what Kubernetes and Prometheus read."""

import time
from http import HTTPStatus

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, ProcessCollector, generate_latest

from spinrun_worker.serving import Guard, Handler, RefusedError, continue_later, healthy
from spinrun_worker.vllm.engine import Engine, EngineError

GUARDED = ("/classify", "/score")

# From a batch of short texts on a GPU to one of long texts on a CPU.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ScorerMetrics:
    """All metrics of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.request_seconds = Histogram(
            "spinrun_scorer_request_seconds",
            "Duration of scoring requests by path and HTTP status, seconds.",
            ["path", "status"],
            registry=registry,
            buckets=_BUCKETS,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class ScorerApp:
    """The routes of a scorer's agent and their handlers."""

    def __init__(self, vllm: str, session: aiohttp.ClientSession, metrics: ScorerMetrics, *, guard: Guard) -> None:
        """Serve nothing yet.

        Args:
            vllm: URL of the vLLM server, such as http://127.0.0.1:8000.
            session: For requests to vLLM.
            metrics: The agent's metrics.
            guard: Knows the run's token.
        """
        self._vllm = vllm.rstrip("/")
        self._session = session
        self._engine = Engine(vllm, session)
        self._metrics = metrics
        self._guard = guard

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = self._guard.application(self._measure)
        for path in GUARDED:
            app.router.add_post(path, self._post, expect_handler=continue_later)
        app.router.add_get("/healthz", healthy)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self._get_metrics)
        return app

    @web.middleware
    async def _measure(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in GUARDED:
            return await handler(request)
        started, status = time.monotonic(), 500
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            self._metrics.request_seconds.labels(request.path, str(status)).observe(time.monotonic() - started)

    async def _post(self, request: web.Request) -> web.Response:
        """Pass vLLM's answer through. When the client disconnects, the request to vLLM ends too."""
        body = await self._guard.read_body(request)
        try:
            async with self._session.post(
                self._vllm + request.path, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
        except (aiohttp.ClientError, OSError) as error:
            # It is starting, for the first time or again: a later request will be answered.
            message = f"vLLM does not answer: {error or type(error).__name__}"
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable", message) from error

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether vLLM serves."""
        try:
            await self._engine.check_health()
        except EngineError as error:
            return web.Response(status=503, text=f"{error}\n")
        return web.Response(text="ok\n")

    async def _get_metrics(self, _: web.Request) -> web.Response:
        # vLLM listens on the loopback interface only: its metrics reach Prometheus through this agent.
        page = self._metrics.exposition() + await self._engine.metrics()
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
