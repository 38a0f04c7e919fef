"""The agent's HTTP interface: what the trainer calls, and what Kubernetes and Prometheus read."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError

from spinrun_api.base import Record, first_problem
from spinrun_protocol.wire import End, ErrorBody, SamplesRequest, VersionWanted
from spinrun_worker.bearer import Bearer
from spinrun_worker.rollout.activation import Activator
from spinrun_worker.rollout.gate import Gate, VersionChangedError
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.rollout.sampling import Sampler
from spinrun_worker.vllm.engine import Engine

logger = logging.getLogger(__name__)

AnyRecord = TypeVar("AnyRecord", bound=Record)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ServingLimits:
    """How much work one agent accepts."""

    max_calls: int = 8
    """Concurrent calls of /v1/samples."""
    max_prompts: int = 4096
    """Prompts in one call."""
    max_body_bytes: int = 64 << 20
    """Size of a request's body."""


class RefusedError(Exception):
    """A refused call: an HTTP status with its ErrorBody."""

    def __init__(self, status: HTTPStatus, reason: str, error: str, *, serving: int | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.body = ErrorBody(error=error, reason=reason, serving=serving)


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
        bearer: Bearer,
        limits: ServingLimits,
    ) -> None:
        self._activation = activation
        self._gate = gate
        self._sampler = sampler
        self._metrics = metrics
        self._engine = engine
        self._bearer = bearer
        self._limits = limits
        self._calls = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._answer_errors, self._require_token], client_max_size=self._limits.max_body_bytes)
        app.router.add_put("/v1/version", self._put_version)
        app.router.add_get("/v1/version", self._get_version)
        app.router.add_post("/v1/samples", self._post_samples)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._get_metrics)
        return app

    async def drain(self, seconds: float) -> None:
        """Accept no new calls, and give the current ones this many seconds to finish."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            logger.warning("%d calls have not finished within %g s and are cut off", self._calls, seconds)

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Put every refusal in the same form."""
        try:
            return await handler(request)
        except RefusedError as error:
            refused, status = error.body, int(error.status)
        except web.HTTPRequestEntityTooLarge:
            most = self._limits.max_body_bytes
            refused = ErrorBody(error=f"the body has more than {most} bytes: send fewer prompts in a call", reason="TooLarge")
            status = 413
        except web.HTTPException as error:
            refused = ErrorBody(error=error.reason, reason=HTTPStatus(error.status).phrase.title().replace(" ", ""))
            status = error.status
        self._metrics.refused.labels(refused.reason).inc()
        return _json(refused, status)

    @web.middleware
    async def _require_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/v1/") and not self._bearer.is_shown(request.headers):
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "Unauthorized", Bearer.REFUSAL)
        return await handler(request)

    async def _put_version(self, request: web.Request) -> web.Response:
        wanted = await _body(request, VersionWanted)
        if wanted.version != wanted.manifest.version:
            raise _invalid(f"version {wanted.version} is requested with the manifest of version {wanted.manifest.version}")
        try:
            self._activation.want(wanted.manifest)
        except ValueError as error:
            raise _invalid(str(error)) from error
        return _json(self._activation.state(), 202)

    async def _get_version(self, _: web.Request) -> web.Response:
        return _json(self._activation.state())

    async def _post_samples(self, request: web.Request) -> web.StreamResponse:
        with self._call():
            wanted = await _body(request, SamplesRequest)
            self._check_prompts(wanted)
            try:
                self._gate.admits(wanted.version, wanted.digest)
            except VersionChangedError as error:
                served = self._gate.served
                serving = served.weights.version if served else None
                raise RefusedError(HTTPStatus.CONFLICT, "StaleVersion", str(error), serving=serving) from error
            return await self._stream(request, wanted)

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
                answers = [group.create_task(self._sampler.answer(prompt, wanted)) for prompt in wanted.prompts]
                for answer in asyncio.as_completed(answers):
                    await response.write(_line(await answer))
                await response.write(_line(End()))
        except* ConnectionResetError:
            logger.info("A client disconnected before its %d prompts were answered", len(wanted.prompts))
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
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


async def _body(request: web.Request, model: type[AnyRecord]) -> AnyRecord:
    """The body as a record. Raises RefusedError when it is not a valid one."""
    data = await request.read()
    try:
        # Megabytes of token ids: the event loop must not wait for them.
        return await asyncio.to_thread(model.model_validate_json, data)
    except ValidationError as error:
        raise _invalid(first_problem(error)) from error


def _invalid(error: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, "Invalid", error)


def _json(record: Record, status: int = 200) -> web.Response:
    return web.Response(status=status, text=json.dumps(record.to_document()), content_type="application/json")


def _line(record: Record) -> bytes:
    return record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
