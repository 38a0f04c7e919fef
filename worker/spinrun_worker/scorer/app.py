"""The agent's HTTP interface: vLLM's /classify and /score for those with the token, and what Kubernetes and Prometheus read."""

import json
import time
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, ProcessCollector, generate_latest

from spinrun_protocol.wire import ErrorBody
from spinrun_worker.bearer import Bearer
from spinrun_worker.vllm.engine import Engine, EngineError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GUARDED = ("/classify", "/score")
MAX_BODY_BYTES = 64 << 20

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

    def __init__(self, vllm: str, session: aiohttp.ClientSession, metrics: ScorerMetrics, *, bearer: Bearer) -> None:
        """Serve nothing yet.

        Args:
            vllm: URL of the vLLM server, such as http://127.0.0.1:8000.
            session: For requests to vLLM.
            metrics: The agent's metrics.
            bearer: The run's token.
        """
        self._vllm = vllm.rstrip("/")
        self._session = session
        self._engine = Engine(vllm, session)
        self._metrics = metrics
        self._bearer = bearer

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._measure], client_max_size=MAX_BODY_BYTES)
        for path in GUARDED:
            app.router.add_post(path, self._post)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
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
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            self._metrics.request_seconds.labels(request.path, str(status)).observe(time.monotonic() - started)

    async def _post(self, request: web.Request) -> web.Response:
        """Pass vLLM's answer through. When the client disconnects, the request to vLLM ends too."""
        if not self._bearer.is_shown(request.headers):
            return _refusal(401, "Unauthorized", Bearer.REFUSAL)
        body = await request.read()
        try:
            async with self._session.post(
                self._vllm + request.path, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
        except (aiohttp.ClientError, OSError) as error:
            # It is starting, for the first time or again: a later request will be answered.
            return _refusal(503, "Unavailable", f"vLLM does not answer: {error or type(error).__name__}")

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        try:
            await self._engine.check_health()
        except EngineError as error:
            return web.Response(status=503, text=f"{error}\n")
        return web.Response(text="ok\n")

    async def _get_metrics(self, _: web.Request) -> web.Response:
        # vLLM listens on the loopback interface only: its metrics reach Prometheus through this agent.
        page = self._metrics.exposition() + await self._engine.metrics()
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _refusal(status: int, reason: str, error: str) -> web.Response:
    body = json.dumps(ErrorBody(error=error, reason=reason).to_document())
    return web.Response(status=status, text=body, content_type="application/json")
