"""What the agents' HTTP server bears of its clients: requests over real sockets, as no client would write them."""

import asyncio
import gzip
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from spinrun_worker.bearer import Bearer
from spinrun_worker.serving import Guard, HttpLimits, continue_later, health_application, healthy, listening
from support.raw_http import AUTHORIZATION, Answer, first, request, send
from support.rollouts import TOKEN

MAX_BODY = 1000
QUICK = HttpLimits(max_body_bytes=MAX_BODY, max_connections=8, head_seconds=0.3, body_seconds=0.3)
PATIENT = HttpLimits(max_body_bytes=MAX_BODY, max_connections=8)


class Served:
    """A server, and the bodies that its one handler has been given."""

    def __init__(self) -> None:
        self.port = 0
        self.bodies: list[bytes] = []
        self.refused: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()


Serve = Callable[[HttpLimits], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncGenerator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(limits: HttpLimits) -> Served:
            served = Served()
            guard = Guard(Bearer(TOKEN), limits, on_refusal=served.refused.append)

            async def post(request: web.Request) -> web.Response:
                served.bodies.append(await guard.read_body(request))
                await served.may_answer.wait()
                return web.Response(text="done")

            app = guard.application()
            app.router.add_post("/v1/work", post, expect_handler=continue_later)
            app.router.add_get("/healthz", healthy)
            served.port = await stack.enter_async_context(listening(guard, app, host="127.0.0.1", port=0))
            return served

        yield start


@pytest.fixture
async def quick(serve: Serve) -> Served:
    return await serve(QUICK)


@pytest.fixture
async def served(serve: Serve) -> Served:
    return await serve(PATIENT)


async def assert_serves(served: Served) -> None:
    """The server answers a request like any other."""
    (answer,) = await send(served.port, request("POST", "/v1/work", body=b"{}"))
    assert (answer.status, answer.body) == (200, b"done")


def assert_refused(answer: Answer, status: int, reason: str, served: Served) -> None:
    assert answer.status == status
    body = json.loads(answer.body)
    assert body["reason"] == reason
    assert " " in body["error"], "a sentence"
    assert served.bodies == []
    assert served.refused == [reason]


# --- what the head alone condemns ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        pytest.param(["Content-Length: 900"], 401, "Unauthorized", id="no token"),
        pytest.param(["Authorization: Bearer wrong", "Content-Length: 900"], 401, "Unauthorized", id="wrong token"),
        pytest.param([AUTHORIZATION.strip()] * 2 + ["Content-Length: 900"], 401, "Unauthorized", id="token twice"),
        pytest.param([AUTHORIZATION.strip(), "Authorization: Basic x", "Content-Length: 9"], 401, "Unauthorized", id="two"),
        pytest.param(
            ["Authorization: Bearer wrong", "Expect: 100-continue", "Content-Length: 9"], 401, "Unauthorized", id="expect"
        ),
        pytest.param(["Authorization: Bearer wrong", "Transfer-Encoding: chunked"], 401, "Unauthorized", id="chunked"),
        pytest.param([AUTHORIZATION.strip(), "Content-Length: 1001"], 413, "TooLarge", id="too large"),
        pytest.param([AUTHORIZATION.strip(), "Content-Length: 9999999999999999"], 413, "TooLarge", id="far too large"),
        pytest.param(
            [AUTHORIZATION.strip(), "Expect: 100-continue", "Content-Length: 1001"], 413, "TooLarge", id="large, expect"
        ),
        *(
            pytest.param([AUTHORIZATION.strip(), f"Content-Encoding: {name}", "Content-Length: 900"], 400, "Invalid", id=name)
            for name in ("gzip", "GZIP", "deflate", "br", "zstd", "x-gzip", "nonsense", "identity, gzip", "gzip, gzip", "\xff")
        ),
        pytest.param(
            [AUTHORIZATION.strip(), "Content-Encoding: identity", "Content-Encoding: gzip", "Content-Length: 9"],
            400,
            "Invalid",
            id="second encoding",
        ),
    ],
)
async def test_head_is_refused_before_anything_of_the_body_is_sent(
    served: Served, headers: list[str], status: int, reason: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("POST", "/v1/work", *headers, token=False))
    answer = await asyncio.wait_for(first(reader), 5)
    writer.close()

    assert_refused(answer, status, reason, served)
    assert "100 Continue" not in answer.head
    await assert_serves(served)


async def test_refusal_reaches_a_client_that_has_sent_its_body_already(served: Served) -> None:
    body = b"x" * 3_000_000

    (answer,) = await send(served.port, request("POST", "/v1/work", body=body, token=False))

    assert_refused(answer, 401, "Unauthorized", served)


async def test_bomb_is_not_unpacked(served: Served) -> None:
    body = gzip.compress(bytes(500_000))
    assert len(body) < MAX_BODY

    (answer,) = await send(served.port, request("POST", "/v1/work", "Content-Encoding: gzip", body=body))

    assert_refused(answer, 400, "Invalid", served)


async def test_body_is_read_as_it_is_and_up_to_its_limit(served: Served) -> None:
    for headers in ([], ["Content-Encoding: identity"], ["Content-Type: application/gzip"]):
        (answer,) = await send(served.port, request("POST", "/v1/work", *headers, body=b"x" * MAX_BODY))
        assert answer.status == 200
    assert served.bodies == [b"x" * MAX_BODY] * 3


async def test_chunks_are_counted(served: Served) -> None:
    chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
    head = request("POST", "/v1/work", "Transfer-Encoding: chunked")

    (within,) = await send(served.port, head, chunk, chunk, b"0\r\n\r\n")
    (beyond,) = await send(served.port, head, chunk, chunk, chunk, b"0\r\n\r\n")

    assert within.status == 200
    assert beyond.status == 413
    assert served.bodies == [b"x" * 1000]


async def test_body_is_asked_for_once_the_head_is_accepted(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("POST", "/v1/work", "Expect: 100-continue", "Content-Length: 4"))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"body")
    answer = await asyncio.wait_for(first(reader), 5)
    writer.close()

    assert (answer.status, served.bodies) == (200, [b"body"])


# --- what is not HTTP ----------------------------------------------------------------------------------------------

NONSENSE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "unknown version": b"GET /healthz HTTP/9.9\r\n\r\n",
    "no version": b"POST /v1/work\r\n\r\n",
    "long path": request("GET", "/" + "x" * 20_000),
    "long header": request("GET", "/healthz", "X: " + "x" * 20_000),
    "many headers": request("GET", "/healthz", *[f"X{number}: x" for number in range(2_000)]),
    "bad name": request("GET", "/healthz", "X Y: 1"),
    "NUL in a value": request("GET", "/healthz", "X: \0"),
    "folded": request("GET", "/healthz", "X: a\r\n b"),
    "bare line feed in a value": request("GET", "/healthz", "X: a\nY: b\rZ: c"),
    "negative length": request("POST", "/v1/work", "Content-Length: -1"),
    "length in words": request("POST", "/v1/work", "Content-Length: ten"),
    "two lengths": request("POST", "/v1/work", "Content-Length: 1", "Content-Length: 2", body=b"x", length=False),
    "endless length": request("POST", "/v1/work", "Content-Length: " + "9" * 400),
    "length and chunks": request("POST", "/v1/work", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "unknown transfer encoding": request("POST", "/v1/work", "Transfer-Encoding: gzip"),
    "chunks of chunks": request("POST", "/v1/work", "Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "chunk of no number": request("POST", "/v1/work", "Transfer-Encoding: chunked") + b"xyz\r\n\r\n",
    "chunk of a negative number": request("POST", "/v1/work", "Transfer-Encoding: chunked") + b"-5\r\nhello\r\n0\r\n\r\n",
    "endless chunk": request("POST", "/v1/work", "Transfer-Encoding: chunked") + b"f" * 40 + b"\r\nx",
    "chunk without its end": request("POST", "/v1/work", "Transfer-Encoding: chunked") + b"3\r\nabcdef\r\n0\r\n\r\n",
    "connect": b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "another host's address": b"GET http://elsewhere/healthz2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "broken address": b"GET http://[::1/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "port beyond all": b"GET http://x:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown expectation": b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n",
    "method of its own": request("JUGGLE", "/v1/work"),
    "path of bytes": b"GET /\xff\xfe%00%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    "way around": request("POST", "/healthz/../v1/work", body=b"{}", token=False),
    "escaped way": request("POST", "/%76%31/work", body=b"{}", token=False),
    "two slashes": request("POST", "//v1/work", body=b"{}", token=False),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_refused_with_a_sentence_and_the_server_serves(
    served: Served, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    answers = await send(served.port, NONSENSE[name])

    assert [answer.status // 100 for answer in answers] in ([4], []), answers
    assert all(answer.body for answer in answers)
    assert b"Traceback" not in b"".join(answer.body for answer in answers)
    assert served.bodies == []
    assert not [record for record in caplog.records if record.exc_info], "anybody could fill the log with tracebacks"
    await assert_serves(served)


async def test_old_http_and_pipelined_requests_are_answered_in_order(served: Served) -> None:
    for version in (b"", b" HTTP/0.9", b" HTTP/1.0"):
        (old,) = await send(served.port, b"GET /healthz" + version + b"\r\n\r\n")
        assert (old.status, old.body) == (200, b"ok\n")
    one = request("GET", "/healthz", token=False, keep=True)
    answers = await send(served.port, one * 500 + request("GET", "/nowhere", keep=True) + request("GET", "/healthz"))
    assert [answer.status for answer in answers] == [200] * 500 + [404, 200]


async def test_upgrade_is_not_taken(served: Served) -> None:
    headers = ["Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"]
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("GET", "/healthz", *headers).replace(b"Connection: close", b"Connection: Upgrade"))
    assert (await asyncio.wait_for(first(reader), 5)).status == 200
    writer.close()


# --- those who take their time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b""], id="nothing"),
        pytest.param([b"GET /healthz HTTP/1.1\r\n"], id="half a head"),
        pytest.param([b"GET /healthz HTTP/1.1\r\n", *[b"X: y\r\n"] * 50], id="a header now and then"),
        pytest.param([request("GET", "/healthz", token=False, keep=True), *[b"G"] * 50], id="a second request that never ends"),
    ],
)
async def test_head_that_does_not_come_ends_the_connection(quick: Served, pieces: list[bytes]) -> None:
    started = time.monotonic()
    await send(quick.port, *pieces, pause=0.05, seconds=8, idle_seconds=8)

    assert time.monotonic() - started < 5
    assert quick.bodies == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_that_does_not_come_is_given_up(quick: Served, chunked: bool) -> None:
    header, piece = ("Transfer-Encoding: chunked", b"1\r\nx\r\n") if chunked else ("Content-Length: 900", b"x")
    reader, writer = await asyncio.open_connection("127.0.0.1", quick.port)
    writer.write(request("POST", "/v1/work", header))

    async def trickle() -> None:
        while True:
            writer.write(piece)
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    answer = await asyncio.wait_for(first(reader), 5)
    trickling.cancel()
    writer.close()
    assert_refused(answer, 408, "RequestTimeout", quick)
    await assert_serves(quick)


async def test_connections_are_kept_between_requests_but_not_for_ever(quick: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", quick.port)
    for _ in range(5):
        writer.write(request("POST", "/v1/work", body=b"{}", keep=True))
        assert (await asyncio.wait_for(first(reader), 5)).status == 200
        await asyncio.sleep(0.1)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_answer_that_takes_longer_than_a_head_is_waited_for(quick: Served) -> None:
    quick.may_answer.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", quick.port)
    writer.write(request("POST", "/v1/work", body=b"{}"))
    await asyncio.sleep(1)
    quick.may_answer.set()
    assert (await asyncio.wait_for(first(reader), 5)).status == 200
    writer.close()


CHUNKS = [b"xyz\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"f" * 40 + b"\r\n"]


async def test_malformed_chunk_after_the_head_is_refused(quick: Served) -> None:
    for chunk in CHUNKS:
        head = request("POST", "/v1/work", "Transfer-Encoding: chunked")
        (answer,) = await send(quick.port, head, chunk, pause=0.05, idle_seconds=0.2)
        assert answer.status in (400, 408)
        assert b" " in answer.body
    assert quick.bodies == []
    await assert_serves(quick)


def test_malformed_chunk_is_refused_by_aiohttps_parser_in_python_too() -> None:
    tests = f"{__file__}::{test_malformed_chunk_after_the_head_is_refused.__name__}"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"AIOHTTP_NO_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


# --- those who are many --------------------------------------------------------------------------------------------


async def test_newcomers_take_the_place_of_the_oldest_without_the_token(served: Served) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(30)]
    await assert_serves(served)

    await asyncio.sleep(0.1)
    closed = [reader.at_eof() for reader, _ in idle]
    assert sum(not each for each in closed) <= PATIENT.max_connections
    assert closed == sorted(closed, reverse=True), "the oldest go first"
    for _, writer in idle:
        writer.close()


async def test_flood_does_not_cut_off_those_who_have_shown_the_token(served: Served) -> None:
    served.may_answer.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("POST", "/v1/work", body=b"{}"))
    async with asyncio.timeout(5):
        while not served.bodies:  # noqa: ASYNC110 - it is set behind HTTP
            await asyncio.sleep(0.01)

    idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(300)]
    served.may_answer.set()

    assert (await asyncio.wait_for(first(reader), 5)).status == 200
    await assert_serves(served)
    for _, each in [*idle, (reader, writer)]:
        each.close()


async def test_full_of_those_with_the_token_it_refuses_others(served: Served) -> None:
    trusted = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(PATIENT.max_connections)]
    for reader, writer in trusted:
        writer.write(request("GET", "/nowhere", keep=True))
        assert (await asyncio.wait_for(first(reader), 5)).status == 404

    assert await send(served.port, request("GET", "/healthz")) == []

    trusted.pop()[1].close()
    await asyncio.sleep(0.1)
    (answer,) = await send(served.port, request("GET", "/healthz"))
    assert answer.status == 200
    for _, writer in trusted:
        writer.close()


async def test_probes_are_answered_on_their_own_port_while_the_other_is_flooded(served: Served) -> None:
    guard = Guard(Bearer(TOKEN), PATIENT, on_refusal=lambda _: None)
    async with listening(guard, health_application(guard, healthy), host="127.0.0.1", port=0) as port:
        flood = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(100)]
        for _, writer in flood:
            writer.write(b"POST /v1/work HTTP/1.1\r\nContent-Length: 900\r\n\r\n")
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 404), ("/v1/version", 404)):
            started = time.monotonic()
            (answer,) = await send(port, request("GET", path))
            assert (answer.status, time.monotonic() - started < 1) == (status, True)
        for _, writer in flood:
            writer.close()


async def test_faults_of_ours_are_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("spinrun_worker.serving.http")

    logger.error("Error handling request", exc_info=KeyError("ours"))

    assert [record.exc_text or record.exc_info for record in caplog.records]
