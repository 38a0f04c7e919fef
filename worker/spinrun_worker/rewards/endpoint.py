"""A server that rewards come from: many requests at once, patience while it is down, and no trust in what it answers.

A request ends with an answer, or with the reason why there is none; what is no answer is never a reward. While nobody gets an
answer all of them wait, however long it takes. What only the user can set right ends the run.
"""

import asyncio
import logging
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
from spinrun_worker.rewards.verdict import Failure, FailureKind

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 8 << 20
MAX_EXCERPT = 200
"""Characters of a reply that a message shows."""
MAX_USELESS = 64
"""Replies without a single answer among them after which the run ends: more of them would only cost."""

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
    """Where an endpoint is, and what is said when it cannot be the right one."""

    urls: tuple[str, ...]
    """Servers of the same model, among which requests are divided; one that is asked again goes to the next."""

    key: str | None = None
    """Bearer token."""

    fields: str = "url, model"
    """Fields of the spec to correct when no request gets an answer."""

    refusals: Mapping[int, str] = field(default_factory=lambda: CONFIGURATION_STATUS)
    """What a status means that ends the run, and the remedy."""

    is_remote: bool = True
    """Whether it may be beyond a proxy, which the environment then names."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    first_pause: float = 0.5
    """Longest pause before the second try; the pauses double."""
    longest_pause: float = 30.0
    longest_retry_after: float = 600.0
    """A server that asks for more is asked again earlier."""
    down: float = 30.0
    """Without an answer to anybody, after which the server is said to be down."""
    tries: int = 5
    """Of a request after which it is given up, once it is clear that others are answered."""
    tick: float = 0.25
    """Between two looks at `stop`."""


class _TryAgain(Exception):  # noqa: N818 - not a failure yet
    def __init__(self, kind: FailureKind, message: str, *, is_throttled: bool = False) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.is_throttled = is_throttled


class EndpointClient(Generic[Question, Answer]):
    """Asks one server. Not for use by two threads at once."""

    def __init__(
        self,
        block: str,
        endpoint: spec.Endpoint,
        dialect: Dialect[Question, Answer],
        *,
        server: Server,
        canary: Question,
        on_trouble: Callable[[str], None],
        stop: Callable[[], bool],
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare, and ask nothing.

        block: path of the endpoint's block in the spec, for messages. canary: a small question that any server can answer.
        on_trouble: told why the server is taken to be down, and "" when it is back.
        """
        self.counts: Counter[str] = Counter(requests=0, failures=0, retries=0, prompt_tokens=0, completion_tokens=0)
        """Since the start: requests sent, those given up, those sent again, and tokens as the server counts them."""
        self._block, self._endpoint, self._dialect = block, endpoint, dialect
        self._server, self._canary = server, canary
        self._on_trouble, self._stop = on_trouble, stop
        self._patience = patience or Patience()
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
        """Ask once, to learn now what else would end the run after its first answers.

        Raises ConfigurationError when url, model or key cannot be right. A server that is down is waited for when it is needed.
        """

        async def ask() -> None:
            async with self._session() as http:
                try:
                    await self._post(http, self._canary)
                except _TryAgain as error:
                    logger.warning("%s does not answer yet: %s", self._block, error)

        asyncio.run(ask())

    def ask(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        """An answer to each question, or why there is none. While the server is down this waits.

        Raises ConfigurationError when url, model or key cannot be right, and Preempted soon after `stop`.
        """
        return asyncio.run(self._ask_all(questions))

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        answers: dict[int, Answer | Failure] = {}
        waiting = iter(enumerate(questions))
        self._failing_since = None

        async def work(http: aiohttp.ClientSession) -> None:
            for index, question in waiting:
                answers[index] = await self._ask(http, question)

        async with self._session() as http:
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
            done, pending = await asyncio.wait(pending, timeout=self._patience.tick, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
            if pending and self._stop():
                raise Preempted(f"stopped while waiting for {self._block}")
            self._describe()

    def _describe(self) -> None:
        """Tell when nobody has been answered for too long, and when somebody is again."""
        since = self._failing_since
        if since is None:
            self._say("")
        elif self._clock() - since > self._patience.down:
            self._say(f"{self._block} does not answer: {self._last_failure}. The run waits, and goes on once it does")

    def _say(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        if not (trouble and self._trouble):
            logger.warning("%s", trouble or f"{self._block} answers again")
        self._trouble = trouble
        self._on_trouble(trouble)

    # One question

    async def _ask(self, http: aiohttp.ClientSession, question: Question) -> Answer | Failure:
        patience, asked_at, is_throttled = self._patience, self._clock(), False

        def is_given_up(state: RetryCallState) -> bool:
            nonlocal is_throttled
            error = state.outcome.exception() if state.outcome else None
            others_are_answered = self._answered_at is not None and self._answered_at > asked_at
            is_throttled = isinstance(error, _TryAgain) and error.is_throttled
            return state.attempt_number >= patience.tries and others_are_answered and not is_throttled

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            wait=wait_random_exponential(multiplier=patience.first_pause, max=patience.longest_pause),
            stop=is_given_up,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    number = attempt.retry_state.attempt_number
                    self.counts["retries"] += number > 1
                    if number > patience.tries and not is_throttled:
                        # Is it the server, or this question? A small one tells.
                        with suppress(_TryAgain):
                            await self._post(http, self._canary)
                    return self._counted(await self._post(http, question))
        except _TryAgain as error:
            return self._counted(Failure(error.kind, str(error)))
        raise AssertionError("retrying ends with a result or an exception")

    def _counted(self, answer: Answer | Failure) -> Answer | Failure:
        """Count failures. Raises ConfigurationError when there is nothing else."""
        if not isinstance(answer, Failure):
            self._has_answered = True
            return answer
        self.counts["failures"] += 1
        self._useless += 1
        if self._useless >= MAX_USELESS and not self._has_answered:
            raise ConfigurationError(
                f"{self._block}: {MAX_USELESS} requests and not one answer; the last: {answer.message}. Correct "
                f"{self._server.fields} or template, or take another model"
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
            raise ConfigurationError(f"{self._block}: {url} is no address: correct url") from error
        except TimeoutError as error:
            raise self._failed("too slow", f"no reply in {self._endpoint.timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed("no reply", self._clean(f"{type(error).__name__}: {error}")) from error
        except _ReplyTooLongError:
            self._is_up()
            return Failure("no answer", f"the reply is longer than {MAX_REPLY_BYTES} bytes")
        said = f"status {status}: {self._clean(content.decode(errors='replace'))}"
        if status in TRY_AGAIN_STATUS:
            self._next_turn = max(self._next_turn, self._clock() + self._asked_pause(retry_after))
            raise self._failed("server error", said, is_throttled=status in (429, 503))
        if 200 <= status < 300 and not is_html:
            return self._read(question, content)
        if status in (400, 403, 422) and not is_html:
            self._dialect.adapt(content.decode(errors="replace").lower())
            if (adapted := self._dialect.body(question)) != body:
                parameters = ", ".join(sorted(body.keys() ^ adapted.keys()))
                logger.warning("%s refuses parameters and is asked otherwise from now on (%s): %s", self._block, parameters, said)
                return await self._post(http, question)
        if is_html or status < 400 or status in self._server.refusals:
            raise ConfigurationError(self._sentence(url, status, said, is_html=is_html))
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
            return Failure("no answer", self._clean(f"not the reply of such an API: {first_problem(error)}"))
        except UnusableReplyError as error:
            return Failure("no answer", self._clean(str(error)))

    def _sentence(self, url: str, status: int, said: str, *, is_html: bool) -> str:
        """What is wrong with url, model or key."""
        if is_html:
            return f"{self._block}: {url} is a web page, not an API (status {status}): correct url"
        if status < 400:
            return f"{self._block}: {url} leads elsewhere (status {status}): write the final address into url"
        wants_key = status in (401, 403) and self._server.key is None
        problem = "wants a key: set secretRef" if wants_key else self._server.refusals[status]
        return f"{self._block}: {url} {problem} ({said})"

    def _failed(self, kind: FailureKind, message: str, *, is_throttled: bool = False) -> _TryAgain:
        if self._failing_since is None:
            self._failing_since = self._clock()
        self._last_failure = message
        return _TryAgain(kind, message, is_throttled=is_throttled)

    def _is_up(self) -> None:
        self._answered_at, self._failing_since = self._clock(), None

    async def _take_turn(self) -> None:
        """Wait for this request's time, by the limit on requests a minute and by what the server has asked for."""
        spacing = 60 / self._endpoint.requests_per_minute if self._endpoint.requests_per_minute else 0.0
        now = self._clock()
        turn = max(now, self._next_turn)
        self._next_turn = turn + spacing
        await asyncio.sleep(turn - now)

    def _asked_pause(self, retry_after: str | None) -> float:
        """Seconds that a Retry-After asks for, given in seconds or as a date; 0 for none and for nonsense."""
        if retry_after is None:
            return 0.0
        try:
            seconds = float(retry_after)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
            except (ValueError, OverflowError):
                return 0.0
        return min(max(seconds, 0.0), self._patience.longest_retry_after) if seconds == seconds else 0.0

    def _clean(self, text: str) -> str:
        """Text from elsewhere for a message: short, printable, and without the key."""
        shown = text.replace(self._server.key, "***") if self._server.key else text
        return "".join(character if character.isprintable() else " " for character in shown[:MAX_EXCERPT]).strip()

    def _session(self) -> aiohttp.ClientSession:
        # Nothing is unpacked: a small reply could become a huge one.
        key = self._server.key
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # No cookies: requests have nothing in common.
        return aiohttp.ClientSession(
            headers=headers,
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout_seconds),
            trust_env=self._server.is_remote,
        )


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
    """The key to send, if the spec asks for one. Raises ConfigurationError, without showing it, when it is missing or no key."""
    if endpoint.secret_ref is None:
        return None
    stripped = (key or "").strip()
    if not stripped:
        raise ConfigurationError(f"{block}.secretRef: the environment variable {variable}, which holds the key, is not set")
    if not (stripped.isascii() and stripped.isprintable() and " " not in stripped):
        raise ConfigurationError(f"{block}.secretRef: the key has characters that no key has, such as a space: correct it")
    return stripped
