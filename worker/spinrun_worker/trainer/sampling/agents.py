"""One agent as the collector sees it: the calls it understands, and what is known of it."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from pydantic import TypeAdapter, ValidationError

from spinrun_api.base import first_problem
from spinrun_protocol.wire import (
    End,
    ErrorBody,
    PromptFailed,
    SampleGroup,
    SamplesLine,
    SamplesRequest,
    VersionState,
    VersionWanted,
)
from spinrun_worker.trainer.sampling.limits import SamplingLimits

MAX_LINE_BYTES = 256 * 2**20
"""A group of 1024 samples of 32k tokens each is about as long; an agent never sends more."""

MAX_BODY_BYTES = 2**20

_LINE: TypeAdapter[SampleGroup | PromptFailed | End] = TypeAdapter(SamplesLine)


class AgentError(Exception):
    """A call to an agent that failed."""

    def __init__(self, reason: str, message: str) -> None:
        """Describe the failure.

        Args:
            reason: The agent's own word (Unauthorized, StaleVersion, TooManyRequests, Draining, …), or ours: Unreachable (it did
                not answer), Cut (its stream broke off), Malformed (what it sent is not a valid answer).
            message: What happened, for people.
        """
        super().__init__(message)
        self.reason = reason


class AgentClient:
    """The calls to one agent. All raise AgentError."""

    def __init__(self, url: str, http: aiohttp.ClientSession, *, request_seconds: float, silence_seconds: float) -> None:
        """Prepare to call an agent.

        Args:
            url: Its base URL.
            http: Sends the requests, with the run's token.
            request_seconds: Timeout of a small call, and of connecting.
            silence_seconds: Longest time between two lines of a stream.
        """
        self._url = url
        self._http = http
        self._brief = aiohttp.ClientTimeout(total=request_seconds)
        self._patient = aiohttp.ClientTimeout(total=None, sock_connect=request_seconds, sock_read=silence_seconds)

    async def state(self) -> VersionState:
        """The version that the agent serves, and how far it is with the one that is wanted."""
        async with self._call("GET", "/v1/version", None, self._brief) as response:
            return await self._version_state(response)

    async def want(self, wanted: VersionWanted) -> VersionState:
        """Ask the agent to serve a version.

        Returns:
            Its state at once, before it serves the version.
        """
        async with self._call("PUT", "/v1/version", wanted.model_dump_json(by_alias=True), self._brief) as response:
            return await self._version_state(response)

    @asynccontextmanager
    async def samples(self, request: SamplesRequest) -> AsyncGenerator[AsyncIterator[SampleGroup | PromptFailed]]:
        """Have prompts answered. Entered once the agent has accepted the request.

        Yields:
            The lines of its stream, which raises Cut unless it is whole.
        """
        async with self._call("POST", "/v1/samples", request.model_dump_json(by_alias=True), self._patient) as response:
            yield self._lines(response)

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, body: str | None, timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """A response that is 2xx.

        Raises:
            AgentError: Unreachable or the agent's own reason before it has answered, Cut afterwards.
        """
        answered = False
        try:
            headers = {"Content-Type": "application/json"}
            async with self._http.request(
                method, self._url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                answered = True
                if not 200 <= response.status < 300:
                    raise await _refusal(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = str(error) or f"no answer in time ({type(error).__name__})"
            raise AgentError("Cut" if answered else "Unreachable", what) from error

    async def _version_state(self, response: aiohttp.ClientResponse) -> VersionState:
        try:
            return VersionState.model_validate_json(await _body(response))
        except ValidationError as error:
            raise AgentError("Malformed", f"its state is not a valid VersionState: {first_problem(error)}") from error

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[SampleGroup | PromptFailed]:
        async for line in _split_lines(response.content):
            try:
                record = _LINE.validate_json(line)
            except ValidationError as error:
                raise AgentError("Malformed", f"a line of its stream is not a valid answer: {first_problem(error)}") from error
            if isinstance(record, End):
                return
            yield record
        raise AgentError("Cut", "its stream ended without an end line")


@dataclass(eq=False)
class Agent:
    """What is known of an agent, and the calls that it is answering."""

    url: str
    client: AgentClient
    max_calls: int
    """Most calls that it gets at once: fewer after it has said that it is too busy, more again after each that ended well."""
    state: VersionState | None = None
    """Its latest answer. None: it has not been asked yet, or that answer is in doubt."""
    trouble: str = "not asked yet"
    """Why there is no state."""
    unreachable_since: float | None = None
    """Since when it has been unreachable; None: it answered the last time, or has not been asked yet."""
    calls: "set[Call]" = field(default_factory=set)
    """Those in flight, of all generations."""
    failures: int = 0
    """Failed calls in a row."""
    rests_until: float = 0.0
    """No new call before this moment."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have it asked for its state now."""
    logged: str = ""
    """The description that was logged last."""

    def __str__(self) -> str:
        return self.url

    @property
    def answering(self) -> set[str]:
        """Ids of the prompts that it is answering."""
        return {name for call in self.calls for name in call.missing}

    def serves(self, wanted: VersionWanted) -> bool:
        """Whether it serves exactly these weights."""
        state = self.state
        return state is not None and (state.serving, state.serving_digest) == (wanted.version, wanted.manifest.digest)

    def doubt(self, trouble: str) -> None:
        """Forget its state: it gets no call until it has been asked again, which happens at once. trouble: why."""
        self.state = None
        self.trouble = trouble
        self.wake.set()

    def rest(self, now: float, limits: SamplingLimits) -> None:
        """Leave it alone for a random time below a limit that doubles with each failure in a row."""
        if self.rests_until > now:
            return  # the prompts of one call often fail together, for one reason
        longest = min(limits.longest_backoff_seconds, limits.first_backoff_seconds * 2.0 ** min(self.failures, 32))
        self.failures += 1
        self.rests_until = now + random.uniform(0, longest)

    def description(self, wanted: VersionWanted | None) -> str:
        """Its state, for people."""
        if self.state is None:
            return self.trouble
        if wanted is not None and self.serves(wanted):
            return f"serves version {wanted.version}"
        return f"{self.state.state}: {self.state.reason}" if self.state.reason else self.state.state


@dataclass(eq=False)
class Call:
    """One POST of prompts to an agent."""

    agent: Agent
    missing: set[str]
    """Ids of the prompts that are still to be answered."""
    last_line: float
    """When the agent's latest line came; before the first one, when the call began."""
    streaming: bool = False
    """Whether the agent has accepted it."""
    hedged: bool = False
    """Whether its prompts have been given to others too."""
    cut: str = ""
    """Why we ended it; empty: we did not."""
    task: asyncio.Task[None] = field(init=False)
    """Reads the agent's stream."""

    def end(self, why: str) -> None:
        """Cancel it before the agent has ended its stream."""
        if not self.cut:
            self.cut = why
            self.task.cancel()


async def _refusal(response: aiohttp.ClientResponse) -> AgentError:
    body = await _body(response)
    try:
        refused = ErrorBody.model_validate_json(body)
    except ValidationError:
        # Not the agent's own words: a proxy's, when it is a server error.
        reason = "Unreachable" if response.status >= 500 else "Malformed"
        return AgentError(reason, f"HTTP {response.status} without a reason")
    return AgentError(refused.reason, refused.error)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise AgentError("Malformed", f"its answer is longer than {MAX_BODY_BYTES} bytes")
    return body


async def _split_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines; aiohttp's own reader refuses those beyond 64 KiB. What follows the last line break is not a line."""
    parts: list[bytes] = []
    size = 0
    async for chunk in content.iter_any():
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*parts, line])
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE_BYTES:
            raise AgentError("Malformed", f"a line of its stream is longer than {MAX_LINE_BYTES} bytes")
