"""The agent's HTTP interface: what the trainer calls, and what Kubernetes and Prometheus read."""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError

from spinrun_api.base import Record, first_problem
from spinrun_protocol.wire import End, SamplesRequest, VersionWanted
from spinrun_worker.rollout.activation import Activator
from spinrun_worker.rollout.gate import Gate, VersionChangedError
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.rollout.sampling import Sampler
from spinrun_worker.serving import Guard, RefusedError, answer, continue_later, healthy
from spinrun_worker.vllm.engine import Engine

logger = logging.getLogger(__name__)

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class ServingLimits:
    """How much work one agent accepts."""

    max_calls: int = 8
    """Concurrent calls of /v1/samples."""
    max_prompts: int = 4096
    """Prompts in one call."""


class RolloutApp:
    """The routes of a rollout's agent and their handlers."""

    def __init__(
        self,
        activation: Activator,
        gate: Gate,
        sampler: Sampler,
        metrics: RolloutMetrics,
        engine: Engine,
        *,
        guard: Guard,
        limits: ServingLimits,
    ) -> None:
        self._activation = activation
        self._gate = gate
        self._sampler = sampler
        self._metrics = metrics
        self._engine = engine
        self._guard = guard
        self._limits = limits
        self._calls = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = self._guard.application()
        app.router.add_put("/v1/version", self._put_version, expect_handler=continue_later)
        app.router.add_get("/v1/version", self._get_version)
        app.router.add_post("/v1/samples", self._post_samples, expect_handler=continue_later)
        app.router.add_get("/healthz", healthy)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self._get_metrics)
        return app

    async def drain(self, seconds: float) -> None:
        """Accept no new calls, and give the current ones this many seconds to finish."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            logger.warning("%d calls have not finished within %g s and are cut off", self._calls, seconds)

    async def _put_version(self, request: web.Request) -> web.Response:
        wanted = await self._body(request, VersionWanted)
        if wanted.version != wanted.manifest.version:
            raise _invalid(f"version {wanted.version} is requested with the manifest of version {wanted.manifest.version}")
        try:
            self._activation.want(wanted.manifest)
        except ValueError as error:
            raise _invalid(str(error)) from error
        return answer(self._activation.state(), 202)

    async def _get_version(self, _: web.Request) -> web.Response:
        return answer(self._activation.state())

    async def _post_samples(self, request: web.Request) -> web.StreamResponse:
        with self._call():
            wanted = await self._body(request, SamplesRequest)
            self._check_prompts(wanted)
            try:
                self._gate.admits(wanted.version, wanted.digest)
            except VersionChangedError as error:
                served = self._gate.served
                serving = served.weights.version if served else None
                raise RefusedError(HTTPStatus.CONFLICT, "StaleVersion", str(error), serving=serving) from error
            return await self._stream(request, wanted)

    async def _body(self, request: web.Request, model: type[AnyRecord]) -> AnyRecord:
        """The body as a record. Raises RefusedError when it is not a valid one."""
        data = await self._guard.read_body(request)
        try:
            # Megabytes of token ids: the event loop must not wait for them.
            return await asyncio.to_thread(model.model_validate_json, data)
        except ValidationError as error:
            raise _invalid(first_problem(error)) from error

    @contextmanager
    def _call(self) -> Generator[None]:
        """Count a call among the concurrent ones, or refuse it."""
        if self._draining:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "Draining", "this rollout is shutting down: use another")
        if self._calls >= self._limits.max_calls:
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequests", f"{self._calls} calls are in progress: retry later"
            )
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    def _check_prompts(self, wanted: SamplesRequest) -> None:
        if len(wanted.prompts) > self._limits.max_prompts:
            raise _invalid(f"{len(wanted.prompts)} prompts in one call: send at most {self._limits.max_prompts}")
        if len({prompt.id for prompt in wanted.prompts}) != len(wanted.prompts):
            raise _invalid("two prompts have the same id")

    async def _stream(self, request: web.Request, wanted: SamplesRequest) -> web.StreamResponse:
        """Answer prompts, one line each, and one line at the end. When the client disconnects, so do its requests to vLLM."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sampler.answer(prompt, wanted)) for prompt in wanted.prompts]
                for task in asyncio.as_completed(tasks):
                    await response.write(_line(await task))
                await response.write(_line(End()))
        except* ConnectionResetError:
            logger.info("A client disconnected before its %d prompts were answered", len(wanted.prompts))
        return response

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether the wanted version is served."""
        state = self._activation.state()
        if self._draining:
            return web.Response(status=503, text="draining\n")
        if state.state != "serving":
            return web.Response(status=503, text=f"{state.state}: {state.reason}\n")
        return web.Response(text=f"serving version {state.serving}\n")

    async def _get_metrics(self, _: web.Request) -> web.Response:
        # vLLM listens on the loopback interface only: its metrics reach Prometheus through this agent.
        page = self._metrics.exposition() + await self._engine.metrics()
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _invalid(error: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, "Invalid", error)


def _line(record: Record) -> bytes:
    return record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
