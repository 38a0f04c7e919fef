"""What the operator answers over HTTP: /metrics for Prometheus, /healthz and /readyz for the kubelet."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics


@asynccontextmanager
async def serve(controller: Controller, metrics: Metrics, port: int) -> AsyncGenerator[None, None]:
    """Serves while the block runs.

    Raises:
        OSError: The port is taken.
    """
    app = web.Application()

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), content_type="text/plain", charset="utf-8")

    async def get_health(_: web.Request) -> web.Response:
        problems = controller.problems()
        return web.Response(text="\n".join(problems) or "ok", status=503 if problems else 200)

    async def get_ready(_: web.Request) -> web.Response:
        missing = controller.not_ready()
        return web.Response(text="\n".join(missing) or "ok", status=503 if missing else 200)

    app.add_routes([web.get("/metrics", get_metrics), web.get("/healthz", get_health), web.get("/readyz", get_ready)])
    # keepalive_timeout is also how long a connection may take for a request's head. No body is ever read.
    runner = web.AppRunner(
        app, handle_signals=False, access_log=None, shutdown_timeout=1.0, keepalive_timeout=30.0, lingering_time=1.0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
