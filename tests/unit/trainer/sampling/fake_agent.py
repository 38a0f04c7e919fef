"""A fake agent for the collector's tests.

It is fake because a real one cannot be told to break its stream in the middle of a line, to answer with last week's weights, or
to fall silent. It is an HTTP server all the same, and speaks the records of spinrun_protocol.wire.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import (
    End,
    ErrorBody,
    Prompt,
    PromptFailed,
    Sample,
    SampleGroup,
    SamplesRequest,
    VersionState,
    VersionWanted,
)

TOKEN = "secret"

FAST: dict[str, Any] = {
    "activation_seconds": 5.0,
    "wait_seconds": 5.0,
    "tick_seconds": 0.02,
    "poll_seconds": 0.02,
    "resolve_seconds": 0.02,
    "request_seconds": 2.0,
    "first_backoff_seconds": 0.01,
    "longest_backoff_seconds": 0.05,
    "outage_seconds": 0.0,
}


def weights(version: int, digest: str | None = None) -> VersionWanted:
    manifest = Manifest(
        kind="weights",
        number=version,
        uid="u",
        version=version,
        step=0,
        attempt=1,
        files=(),
        digest=digest or f"digest-{version}",
    )
    return VersionWanted(version=version, manifest=manifest)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task does."""
    while not condition():  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0.001)


class Stream:
    """One answer to POST /v1/samples, as the test wants it."""

    def __init__(self, agent: "FakeAgent", request: SamplesRequest, response: web.StreamResponse, http: web.Request) -> None:
        self.agent = agent
        self.request = request
        self.response = response
        self._http = http

    async def group(
        self,
        prompt: Prompt,
        *,
        tokens: int = 3,
        num_samples: int | None = None,
        token_logprobs: tuple[float, ...] | None = None,
        **changes: Any,
    ) -> None:
        text = f"{self.agent.name} answers {prompt.id}"
        samples = tuple(
            Sample(tokens=tuple(range(tokens)), text=text, finish_reason="stop", token_logprobs=token_logprobs)
            for _ in range(num_samples or self.request.sampling.n)
        )
        fields: dict[str, Any] = {
            "id": prompt.id,
            "version": self.request.version,
            "digest": self.request.digest,
            "samples": samples,
        }
        self.agent.answered.append(prompt.id)
        await self.line(SampleGroup(**{**fields, **changes}))

    async def failed(self, prompt: Prompt, reason: str, *, retryable: bool = True) -> None:
        await self.line(PromptFailed(id=prompt.id, reason=reason, retryable=retryable))

    async def line(self, record: SampleGroup | PromptFailed | End) -> None:
        await self.raw(record.model_dump_json(by_alias=True).encode() + b"\n")

    async def raw(self, data: bytes) -> None:
        await self.response.write(data)

    def break_off(self) -> None:
        assert self._http.transport is not None
        self._http.transport.abort()


Behaviour = Callable[[Stream], Awaitable[None]]


async def answer_all(stream: Stream) -> None:
    for prompt in stream.request.prompts:
        await stream.group(prompt)
    await stream.line(End())


class FakeAgent:
    """Serves what it is asked to serve and answers everything, unless the test says otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.token = TOKEN
        self.behaviour: Behaviour = answer_all
        """What every call does, once `once` is used up."""
        self.once: list[Behaviour] = []
        """What the next calls do, one each."""
        self.refusals: list[tuple[int, ErrorBody]] = []
        """What the next calls are refused with."""
        self.cannot_serve = ""
        """Why it does not serve what is wanted."""
        self.wanted: VersionWanted | None = None
        self.serving: VersionWanted | None = None
        self.puts = 0
        self.asked: list[list[str]] = []
        """Ids of the prompts of every call that was not refused."""
        self.answered: list[str] = []
        self.calls_now = 0
        self.most_calls = 0
        self.cancelled_calls = 0
        self.deaf = False
        """It takes connections and says nothing of its state."""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_put("/v1/version", self._put_version)
        app.router.add_get("/v1/version", self._get_version)
        app.router.add_post("/v1/samples", self._post_samples)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        (address,) = self._runner.addresses
        self._port = address[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Die: connections are reset and refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def forget(self) -> None:
        """Be as after a restart."""
        self.wanted = self.serving = None

    def state(self) -> VersionState:
        wanted, serving = self.wanted, self.serving
        return VersionState(
            serving=serving and serving.version,
            serving_digest=serving and serving.manifest.digest,
            wanted=wanted and wanted.version,
            wanted_digest=wanted and wanted.manifest.digest,
            state="failed" if self.cannot_serve else "serving" if serving else "waiting",
            reason=self.cannot_serve,
        )

    async def _put_version(self, http: web.Request) -> web.Response:
        self._authorize(http)
        self.puts += 1
        self.wanted = VersionWanted.model_validate_json(await http.read())
        return web.json_response(text=self.state().model_dump_json(by_alias=True), status=202)

    async def _get_version(self, http: web.Request) -> web.Response:
        self._authorize(http)
        if self.deaf:
            await asyncio.sleep(60)
        if self.wanted is not None and not self.cannot_serve:
            self.serving = self.wanted
        return web.json_response(text=self.state().model_dump_json(by_alias=True))

    async def _post_samples(self, http: web.Request) -> web.StreamResponse:
        self._authorize(http)
        request = SamplesRequest.model_validate_json(await http.read())
        if self.refusals:
            status, body = self.refusals.pop(0)
            return web.json_response(text=body.model_dump_json(by_alias=True), status=status)
        self.asked.append([prompt.id for prompt in request.prompts])
        self.calls_now += 1
        self.most_calls = max(self.most_calls, self.calls_now)
        response = web.StreamResponse()
        await response.prepare(http)
        try:
            await (self.once.pop(0) if self.once else self.behaviour)(Stream(self, request, response, http))
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled_calls += 1
            raise
        finally:
            self.calls_now -= 1
        return response

    def _authorize(self, http: web.Request) -> None:
        if http.headers.get("Authorization") != f"Bearer {self.token}":
            body = ErrorBody(error="wrong token", reason="Unauthorized")
            raise web.HTTPUnauthorized(text=body.model_dump_json(by_alias=True), content_type="application/json")


class FakeEndpoints:
    """Agents that come and go at the test's word."""

    def __init__(self, *agents: FakeAgent) -> None:
        self.agents = list(agents)

    def __str__(self) -> str:
        return "the test's endpoints"

    async def urls(self) -> set[str]:
        return {agent.url for agent in self.agents}
