"""A vLLM that can be told to fail.

It is fake because a real one cannot be made to die between two given calls, to answer with a sample too many, or to hold an
answer back until a test says so. What it does when nothing goes wrong was copied from vLLM 0.32, and `tests/engine` shows the
agent with a real one.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

Body = dict[str, Any]


def completion_of(request: Body) -> Body:
    """What vLLM answers: for each sample the prompt's first token, as often as asked for."""
    prompt, tokens = request["prompt"], request["prompt"][:1] * request["max_tokens"]
    choice = {"text": "text", "finish_reason": "length", "token_ids": tokens, "prompt_token_ids": prompt}
    return {"choices": [{"index": index, **choice} for index in range(request["n"])]}


METRICS = """\
# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 99.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 2.0
"""


class FakeVllm:
    """The endpoints that the agent uses."""

    def __init__(self) -> None:
        self.label = "default"
        self.paused = False
        self.loaded: str | None = None
        self.adapters: dict[str, str] = {}
        """Path by name."""
        self.max_model_len = 64
        self.answer: Callable[[Body], Body] = completion_of
        self.calls: list[str] = []
        self.completions: list[Body] = []
        self.under_way = 0
        self.most_under_way = 0
        self.may_answer = asyncio.Event()
        """Completions wait for it."""
        self.may_answer.set()
        self.dies_at: str | None = None
        """Path whose next call kills this vLLM before it does anything."""
        self.dies_after: str | None = None
        """Path whose next call kills this vLLM once it is done and before it answers."""
        self.fails_at: dict[str, int] = {}
        """Status by path; the path answers with it until it is taken out."""
        self._changed = asyncio.Condition()
        self._connections: set[asyncio.Transport] = set()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        if self._runner is None:
            self._runner = web.AppRunner(self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
            await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[-1][1]

    async def die(self) -> None:
        """As by SIGKILL: every connection breaks, and what was loaded is lost."""
        assert self._site is not None
        await self._site.stop()
        for connection in self._connections:
            connection.abort()
        self._connections.clear()
        self.label, self.paused, self.loaded = "default", False, None
        self.adapters.clear()

    async def until_under_way(self, count: int, seconds: float = 5) -> None:
        """Wait until this many completions are under way."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: self.under_way == count)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._faults])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/weight_info", self._weight_info)
        app.router.add_get("/is_paused", self._is_paused)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/pause", self._pause)
        app.router.add_post("/resume", self._resume)
        app.router.add_post("/collective_rpc", self._collective_rpc)
        app.router.add_post("/reset_prefix_cache", self._reset_prefix_cache)
        app.router.add_post("/update_weight_version", self._update_weight_version)
        app.router.add_post("/v1/load_lora_adapter", self._load_lora_adapter)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_lora_adapter)
        app.router.add_post("/v1/completions", self._completions)
        return app

    @web.middleware
    async def _faults(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        if isinstance(request.transport, asyncio.Transport):
            self._connections.add(request.transport)
        if request.method == "POST":
            self.calls.append(request.path)
        if self.dies_at == request.path:
            self.dies_at = None
            await self.die()
            return web.Response(status=500)
        if request.path in self.fails_at:
            return web.Response(status=self.fails_at[request.path], text="told to fail")
        response = await handler(request)
        if self.dies_after == request.path:
            self.dies_after = None
            await self.die()
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _weight_info(self, _: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.label})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return web.json_response({"is_paused": self.paused})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    async def _models(self, _: web.Request) -> web.Response:
        adapters = [{"id": name, "root": path, "parent": "policy", "max_model_len": None} for name, path in self.adapters.items()]
        return web.json_response({"data": [{"id": "policy", "max_model_len": self.max_model_len}, *adapters]})

    async def _load_lora_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert self.under_way == 0, "an adapter is loaded under a request"
        if body["lora_name"] in self.adapters:
            return web.Response(status=400, text="The lora adapter has already been loaded.")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def _unload_lora_adapter(self, request: web.Request) -> web.Response:
        del self.adapters[(await request.json())["lora_name"]]
        return web.Response(text="Success")

    async def _pause(self, request: web.Request) -> web.Response:
        assert request.query["mode"] == "wait"
        self.paused = True
        return web.json_response({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        self.paused = False
        return web.json_response({"status": "resumed"})

    async def _collective_rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["method"] == "reload_weights"
        assert self.under_way == 0, "weights are loaded under a request"
        self.loaded = body["kwargs"]["weights_path"]
        return web.json_response({"results": [None]})

    async def _reset_prefix_cache(self, _: web.Request) -> web.Response:
        return web.json_response({"success": True})

    async def _update_weight_version(self, request: web.Request) -> web.Response:
        self.label = (await request.json())["new_version"]
        return web.json_response({"success": True})

    async def _completions(self, request: web.Request) -> web.Response:
        assert not self.paused, "a request reaches a paused vLLM"
        body = await request.json()
        self.completions.append(body)
        if body["model"] not in ("policy", *self.adapters):
            return web.Response(status=404, text=f"The model `{body['model']}` does not exist.")
        await self._count(1)
        try:
            await self.may_answer.wait()
        finally:
            await asyncio.shield(self._count(-1))
        return web.json_response(self.answer(body))

    async def _count(self, change: int) -> None:
        self.under_way += change
        self.most_under_way = max(self.most_under_way, self.under_way)
        async with self._changed:
            self._changed.notify_all()
