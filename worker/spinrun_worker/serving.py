"""How agents serve HTTP to a network that may be hostile: what is refused by a request's head, how long and how many may stay.

aiohttp's own settings limit a head: its size, its headers, the seconds that it may take. What it has no setting for is here: the
number of connections, the seconds of a body, and what is refused before any of a body is read.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from spinrun_api.base import Record
from spinrun_protocol.wire import TOKEN_HEADER, ErrorBody
from spinrun_worker.bearer import Bearer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""What Kubernetes and Prometheus read without a token."""

# Of a refused request, whose client may be sending its body still: an answer to a connection that is reset at once gets lost.
_LINGERING_SECONDS = 2.0


@dataclass(frozen=True)
class HttpLimits:
    """What a server bears of its clients."""

    max_body_bytes: int = 64 << 20
    """Size of a request's body."""
    max_connections: int = 256
    """Open connections; a trainer needs a dozen."""
    head_seconds: float = 30.0
    """From a connection's beginning, or its last answer, to the end of the next request's head. Longer than aiohttp's clients
    keep an idle connection (15), which would otherwise send requests into closed ones."""
    body_seconds: float = 60.0
    """From a request's head to the end of its body."""


class RefusedError(Exception):
    """A refused request: an HTTP status with its ErrorBody."""

    def __init__(self, status: HTTPStatus, reason: str, error: str, *, serving: int | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.body = ErrorBody(error=error, reason=reason, serving=serving)


class Guard:
    """Refuses requests by their head, in one form, and knows which connections have shown the token."""

    def __init__(self, bearer: Bearer, limits: HttpLimits, *, on_refusal: Callable[[str], None]) -> None:
        """Guard nothing yet.

        Args:
            bearer: The run's token.
            limits: What is borne of clients.
            on_refusal: Called with the reason of each refusal.
        """
        self.bearer = bearer
        self.limits = limits
        self.trusted: set[web.RequestHandler] = set()
        """Connections that have shown the token."""
        self._on_refusal = on_refusal

    def application(self, *outer: Middleware) -> web.Application:
        """An aiohttp application without routes whose requests are guarded.

        Args:
            outer: Middlewares that see every request, and the answers to those that are refused.
        """
        middlewares = [*outer, self._answer_errors, self._check_head]
        return web.Application(middlewares=middlewares, client_max_size=self.limits.max_body_bytes)

    async def read_body(self, request: web.Request) -> bytes:
        """The body of a request whose head has been accepted. Its route needs `expect_handler=continue_later`.

        Raises:
            RefusedError: It is not whole in time, or its chunks are malformed.
            web.HTTPRequestEntityTooLarge: It is too large.
        """
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer, nothing has been sent
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                return await request.read()
        except TimeoutError as error:
            message = f"the body has not arrived within {self.limits.body_seconds:g} s: send fewer prompts in a call"
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "RequestTimeout", message) from error
        except (web.RequestPayloadError, HttpProcessingError) as error:
            # From aiohttp's parser in Python. The one in C says nothing of a malformed chunk: the body just does not arrive.
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Invalid", f"the body is malformed: {error}") from error

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Put every refusal in the same form."""
        try:
            return await handler(request)
        except RefusedError as error:
            refused, status = error.body, int(error.status)
        except web.HTTPRequestEntityTooLarge:
            refused, status = _too_large(self.limits).body, 413
        except web.HTTPException as error:
            refused = ErrorBody(error=error.reason, reason=HTTPStatus(error.status).phrase.title().replace(" ", ""))
            status = error.status
        self._on_refusal(refused.reason)
        response = answer(refused, status)
        if status == HTTPStatus.REQUEST_TIMEOUT:
            response.force_close()
        return response

    @web.middleware
    async def _check_head(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what the head alone condemns."""
        if request.path not in OPEN_PATHS:
            if not self.bearer.is_shown(request.headers.getall(TOKEN_HEADER, [])):
                raise RefusedError(HTTPStatus.UNAUTHORIZED, "Unauthorized", Bearer.REFUSAL)
            self.trusted.add(request.protocol)
        if any(each.strip().lower() != "identity" for each in request.headers.getall(hdrs.CONTENT_ENCODING, [])):
            # Bodies are never decompressed: a few kilobytes could become gigabytes.
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Invalid", "Content-Encoding is not supported: send the body as it is")
        if (request.content_length or 0) > self.limits.max_body_bytes:
            raise _too_large(self.limits)
        return await handler(request)


async def continue_later(_: web.Request) -> None:
    """Leave `100 Continue` to Guard.read_body: sent by the router, it would invite the body of a request that is refused."""


def answer(record: Record, status: int = 200) -> web.Response:
    """A record as the JSON body of an answer."""
    return web.Response(status=status, text=json.dumps(record.to_document()), content_type="application/json")


def _too_large(limits: HttpLimits) -> RefusedError:
    error = f"the body has more than {limits.max_body_bytes} bytes: send fewer prompts in a call"
    return RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TooLarge", error)


@asynccontextmanager
async def listening(guard: Guard, app: web.Application, *, host: str, port: int) -> AsyncGenerator[int]:
    """Serve an application within its guard's limits while the block runs.

    Args:
        guard: The guard that made the application.
        app: The application, with its routes.
        host: Address to listen on; empty means all.
        port: Port to listen on; 0 means any free one.

    Yields:
        The port.
    """
    log = logging.getLogger(f"{__name__}.http")
    log.addFilter(_is_not_the_clients_fault)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=log,
        # When a client disconnects, its requests to vLLM are cancelled.
        handler_cancellation=True,
        shutdown_timeout=1.0,
        keepalive_timeout=guard.limits.head_seconds,
        lingering_time=_LINGERING_SECONDS,
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None
    connections = Connections(runner.server, guard)
    server = await asyncio.get_running_loop().create_server(connections, host or None, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await runner.cleanup()


@asynccontextmanager
async def serving(
    guard: Guard, app: web.Application, ready: Handler, *, host: str, port: int, health_port: int | None
) -> AsyncGenerator[None]:
    """Serve an agent while the block runs, and beside it what the kubelet asks, on a port that no flood of the other fills.

    Args:
        guard: The guard that made the application.
        app: The application, with its routes.
        ready: Answers /readyz.
        host: Address to listen on; empty means all.
        port: The application's port.
        health_port: The port for the kubelet's questions; None for none.
    """
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(listening(guard, app, host=host, port=port))
        if health_port is not None:
            own = Guard(guard.bearer, guard.limits, on_refusal=lambda _: None)
            await stack.enter_async_context(listening(own, health_application(own, ready), host=host, port=health_port))
        yield


class Connections:
    """Makes the protocol of each new connection, and room for it.

    In a server that is full, the oldest connection that has not shown the token makes room. Nobody without the token can thus
    keep out others, however many connections they hold or open, nor cut off those who have shown it.
    """

    def __init__(self, server: web.Server, guard: Guard) -> None:
        self._server = server
        self._guard = guard

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        # Those that are closed stay listed until their tasks have ended.
        present = [each for each in self._server.connections if each.transport is not None]
        self._guard.trusted.intersection_update(present)
        excess = len(present) - self._guard.limits.max_connections + 1
        for each in [each for each in present if each not in self._guard.trusted][: max(0, excess)]:
            each.force_close()
            excess -= 1
        return self._server() if excess <= 0 else _Refused()


class _Refused(asyncio.Protocol):
    """A connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _is_not_the_clients_fault(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp's is worth a line, and a traceback: what a client sent is not, and is answered with 400."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError))


def health_application(guard: Guard, ready: Handler) -> web.Application:
    """What the kubelet asks, and nothing else.

    Args:
        guard: A guard of its own.
        ready: Answers /readyz.
    """
    app = guard.application()
    app.router.add_get("/healthz", healthy)
    app.router.add_get("/readyz", ready)
    return app


async def healthy(_: web.Request) -> web.Response:
    """The agent itself answers."""
    return web.Response(text="ok\n")
