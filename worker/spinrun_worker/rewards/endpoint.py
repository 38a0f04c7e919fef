"""A server that rewards come from: many requests at once, patience while it is down, and no trust in what it replies.

A request ends with an answer, or with the reason why there is none; anything but an answer is never a reward. While no request
is answered all of them wait, however long it takes. What only the user can set right ends the run.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import cycle
from typing import Generic, TypeVar

import aiohttp
from pydantic import ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from spinrun_api import spec
from spinrun_api.base import first_problem
from spinrun_worker.errors import ConfigurationError, Preempted
from spinrun_worker.rewards.dialect import Dialect, Reply, UnusableReplyError, Usage
from spinrun_worker.rewards.score import Failure, FailureKind

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 8 << 20
MAX_EXCERPT = 200
"""Characters of a reply shown in a message."""
MAX_USELESS = 64
"""Replies without a single answer among them after which the run ends: more of them would only cost money."""

TRY_AGAIN_STATUS = frozenset({408, 425, 429, *range(500, 600)})
CONFIGURATION_STATUS = {
    401: "refuses the key: correct secretRef or what it names",
    403: "refuses the key: correct secretRef or what it names, and let the key use the model",
    404: "knows no such path or model: correct url and model",
}

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Server:
    """Where an endpoint is, and what messages say when it cannot be the right one."""

    block: str
    """Path of the endpoint's block in the spec, for messages."""

    urls: tuple[str, ...]
    """Servers of the same model, among which requests are divided; a request that is retried goes to the next one."""

    key: str | None = None
    """Bearer token."""

    fields: str = "url, model"
    """Fields of the spec to correct when no request gets an answer."""

    refusals: Mapping[int, str] = field(default_factory=lambda: CONFIGURATION_STATUS)
    """What a status means that ends the run, and the remedy."""

    is_remote: bool = True
    """Whether it may be behind a proxy, which the environment then names."""

    def excerpt(self, text: str) -> str:
        """Text from elsewhere for a message: short, printable, and without the key."""
        shown = text.replace(self.key, "***") if self.key else text
        return "".join(character if character.isprintable() else " " for character in shown[:MAX_EXCERPT]).strip()

    def misconfiguration(self, url: str, status: int, said: str, *, is_html: bool) -> ConfigurationError:
        """What is wrong with url, model or key when a server replies with this status."""
        if is_html:
            return ConfigurationError(f"{self.block}: {url} is a web page, not an API (status {status}): correct url")
        if status < 400:
            return ConfigurationError(f"{self.block}: {url} redirects (status {status}): put the final address into url")
        wants_key = status in (401, 403) and self.key is None
        problem = "wants a key: set secretRef" if wants_key else self.refusals[status]
        return ConfigurationError(f"{self.block}: {url} {problem} ({said})")

    def session(self, timeout_seconds: float) -> aiohttp.ClientSession:
        """A session that sends the key, with a time limit for each request."""
        # Nothing is decompressed: a small reply could become a huge one.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        # No cookies: requests have nothing in common.
        return aiohttp.ClientSession(
            headers=headers,
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            trust_env=self.is_remote,
        )


@dataclass(frozen=True)
class RetryPolicy:
    """When a request is retried and when it is given up. Times in seconds."""

    first_pause: float = 0.5
    """Longest pause before the second try; the pauses double."""
    longest_pause: float = 30.0
    longest_retry_after: float = 600.0
    """Longest wait that a server can ask for with Retry-After."""
    down: float = 30.0
    """Time without an answer to any request after which the server is reported as down."""
    tries: int = 5
    """Tries after which a request is given up, once it is clear that others are answered."""
    tick: float = 0.25
    """Interval at which `stop` is checked."""


class _TryAgain(Exception):  # noqa: N818 - not a failure yet
    def __init__(self, kind: FailureKind, message: str, *, is_throttled: bool = False) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.is_throttled = is_throttled


class EndpointClient(Generic[Question, Answer]):
    """Sends questions to one endpoint. Not for use by two threads at once."""

    def __init__(
        self,
        endpoint: spec.Endpoint,
        dialect: Dialect[Question, Answer],
        *,
        server: Server,
        canary: Question,
        on_trouble: Callable[[str], None],
        stop: Callable[[], bool],
        retry_policy: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare, and send nothing yet.

        Args:
            endpoint: The spec's limits: how many requests at once, how many a minute, how long each may take.
            dialect: How a question becomes a request, and a reply an answer.
            server: Where the endpoint is.
            canary: A small question that any server can answer.
            on_trouble: Told why the server is considered down, and "" when it is back.
            stop: Whether to give up waiting.
            retry_policy: When a request is retried and when it is given up.
            clock: Seconds, as time.monotonic.
        """
        self.counts: Counter[str] = Counter(requests=0, failures=0, retries=0, prompt_tokens=0, completion_tokens=0)
        """Since the start: requests sent, those given up, those retried, and tokens as the server counts them."""
        self._endpoint, self._dialect = endpoint, dialect
        self._server, self._canary = server, canary
        self._on_trouble, self._stop = on_trouble, stop
        self._retry_policy = retry_policy or RetryPolicy()
        self._clock = clock
        self._urls = cycle([url.rstrip("/") + dialect.path for url in server.urls])
        self._next_turn = 0.0
        self._answered_at: float | None = None
        self._failing_since: float | None = None
        self._trouble = ""
        self._last_failure = ""
        self._useless = 0
        self._has_answered = False

    def check(self) -> None:
        """Send the canary, to learn now what would otherwise end the run after its first answers.

        A server that is down is waited for when it is needed.

        Raises:
            ConfigurationError: Url, model or key cannot be right.
        """

        async def ask() -> None:
            async with self._server.session(self._endpoint.timeout_seconds) as http:
                try:
                    await self._post(http, self._canary)
                except _TryAgain as error:
                    logger.warning("%s does not answer yet: %s", self._server.block, error)

        asyncio.run(ask())

    def ask(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        """An answer to each question, or why there is none. While the server is down this waits.

        Raises:
            ConfigurationError: Url, model or key cannot be right.
            Preempted: `stop` says so, while questions are waiting.
        """
        return asyncio.run(self._ask_all(questions))

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        answers: dict[int, Answer | Failure] = {}
        waiting = iter(enumerate(questions))
        self._failing_since = None

        async def work(http: aiohttp.ClientSession) -> None:
            for index, question in waiting:
                answers[index] = await self._ask(http, question)

        async with self._server.session(self._endpoint.timeout_seconds) as http:
            workers = {asyncio.create_task(work(http)) for _ in range(min(self._endpoint.concurrency, len(questions)))}
            try:
                await self._watch(workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                self._say("")
        return [answers[index] for index in range(len(questions))]

    async def _watch(self, workers: set[asyncio.Task[None]]) -> None:
        """Wait for all, or for the first exception."""
        pending = workers
        while pending:
            done, pending = await asyncio.wait(pending, timeout=self._retry_policy.tick, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
            if pending and self._stop():
                raise Preempted(f"stopped while waiting for {self._server.block}")
            self._report_trouble()

    def _report_trouble(self) -> None:
        """Say when no request has been answered for too long, and when one is again."""
        since = self._failing_since
        if since is None:
            self._say("")
        elif self._clock() - since > self._retry_policy.down:
            self._say(f"{self._server.block} does not answer: {self._last_failure}. The run waits, and resumes once it does")

    def _say(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        if not (trouble and self._trouble):
            logger.warning("%s", trouble or f"{self._server.block} answers again")
        self._trouble = trouble
        self._on_trouble(trouble)

    # One question

    async def _ask(self, http: aiohttp.ClientSession, question: Question) -> Answer | Failure:
        retry_policy, asked_at, is_throttled = self._retry_policy, self._clock(), False

        def is_given_up(state: RetryCallState) -> bool:
            nonlocal is_throttled
            error = state.outcome.exception() if state.outcome else None
            others_are_answered = self._answered_at is not None and self._answered_at > asked_at
            is_throttled = isinstance(error, _TryAgain) and error.is_throttled
            return state.attempt_number >= retry_policy.tries and others_are_answered and not is_throttled

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            wait=wait_random_exponential(multiplier=retry_policy.first_pause, max=retry_policy.longest_pause),
            stop=is_given_up,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    number = attempt.retry_state.attempt_number
                    self.counts["retries"] += number > 1
                    if number > retry_policy.tries and not is_throttled:
                        # Is it the server, or this question? The canary tells.
                        with suppress(_TryAgain):
                            await self._post(http, self._canary)
                    return self._counted(await self._post(http, question))
        except _TryAgain as error:
            return self._counted(Failure(error.kind, str(error)))
        raise AssertionError("retrying ends with a result or an exception")

    def _counted(self, answer: Answer | Failure) -> Answer | Failure:
        """Count failures. Raises ConfigurationError when there has been nothing else."""
        if not isinstance(answer, Failure):
            self._has_answered = True
            return answer
        self.counts["failures"] += 1
        self._useless += 1
        if self._useless >= MAX_USELESS and not self._has_answered:
            raise ConfigurationError(
                f"{self._server.block}: {MAX_USELESS} requests and not one answer; the last: {answer.message}. Correct "
                f"{self._server.fields} or template, or use another model"
            )
        return answer

    async def _post(self, http: aiohttp.ClientSession, question: Question) -> Answer | Failure:
        """One request. Raises _TryAgain and ConfigurationError."""
        body, url = self._dialect.body(question), next(self._urls)
        await self._take_turn()
        self.counts["requests"] += 1
        try:
            async with http.post(url, json=body, allow_redirects=False) as response:
                content = await _read(response)
                status, is_html = response.status, _is_html(response, content)
                retry_after = response.headers.get("Retry-After")
        except aiohttp.InvalidURL as error:
            raise ConfigurationError(f"{self._server.block}: {url} is not a valid address: correct url") from error
        except TimeoutError as error:
            raise self._failed("too slow", f"no reply in {self._endpoint.timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed("no reply", self._server.excerpt(f"{type(error).__name__}: {error}")) from error
        except _ReplyTooLongError:
            self._is_up()
            return Failure("no answer", f"the reply is longer than {MAX_REPLY_BYTES} bytes")
        said = f"status {status}: {self._server.excerpt(content.decode(errors='replace'))}"
        if status in TRY_AGAIN_STATUS:
            pause = min(retry_after_seconds(retry_after), self._retry_policy.longest_retry_after)
            self._next_turn = max(self._next_turn, self._clock() + pause)
            raise self._failed("server error", said, is_throttled=status in (429, 503))
        if 200 <= status < 300 and not is_html:
            return self._read(question, content)
        if status in (400, 403, 422) and not is_html:
            self._dialect.adapt(content.decode(errors="replace").lower())
            if (adapted := self._dialect.body(question)) != body:
                parameters = ", ".join(sorted(body.keys() ^ adapted.keys()))
                logger.warning("%s refuses parameters; leaving out or renaming %s: %s", self._server.block, parameters, said)
                return await self._post(http, question)
        if is_html or status < 400 or status in self._server.refusals:
            raise self._server.misconfiguration(url, status, said, is_html=is_html)
        self._is_up()
        return Failure("refused", said)

    def _read(self, question: Question, content: bytes) -> Answer | Failure:
        self._is_up()
        try:
            usage = Reply.model_validate_json(content).usage or Usage()
            self.counts["prompt_tokens"] += usage.prompt_tokens
            self.counts["completion_tokens"] += usage.completion_tokens or 0
            return self._dialect.read(question, content)
        except ValidationError as error:
            return Failure("no answer", self._server.excerpt(f"not a valid reply of such an API: {first_problem(error)}"))
        except UnusableReplyError as error:
            return Failure("no answer", self._server.excerpt(str(error)))

    def _failed(self, kind: FailureKind, message: str, *, is_throttled: bool = False) -> _TryAgain:
        if self._failing_since is None:
            self._failing_since = self._clock()
        self._last_failure = message
        return _TryAgain(kind, message, is_throttled=is_throttled)

    def _is_up(self) -> None:
        self._answered_at, self._failing_since = self._clock(), None

    async def _take_turn(self) -> None:
        """Wait for this request's turn, by the limit on requests per minute and by what the server has asked for."""
        spacing = 60 / self._endpoint.requests_per_minute if self._endpoint.requests_per_minute else 0.0
        now = self._clock()
        turn = max(now, self._next_turn)
        self._next_turn = turn + spacing
        await asyncio.sleep(turn - now)


def retry_after_seconds(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as a number or as a date; 0 when it is absent or not valid."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(seconds) else max(seconds, 0.0)


class _ReplyTooLongError(Exception):
    pass


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            raise _ReplyTooLongError
    return bytes(content)


def _is_html(response: aiohttp.ClientResponse, content: bytes) -> bool:
    return response.content_type == "text/html" or content[:100].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def checked_key(key: str | None, endpoint: spec.Endpoint, *, block: str, variable: str) -> str | None:
    """The key to send, if the spec asks for one.

    Args:
        key: What the environment holds.
        endpoint: The spec's block, which may name a Secret.
        block: Path of the block in the spec, for messages.
        variable: The environment variable that holds the key, for messages.

    Raises:
        ConfigurationError: The key is missing or not valid. The message does not show it.
    """
    if endpoint.secret_ref is None:
        return None
    stripped = (key or "").strip()
    if not stripped:
        raise ConfigurationError(f"{block}.secretRef: the environment variable {variable}, which holds the key, is not set")
    if not (stripped.isascii() and stripped.isprintable() and " " not in stripped):
        raise ConfigurationError(f"{block}.secretRef: the key has characters that no key has, such as a space: correct it")
    return stripped
