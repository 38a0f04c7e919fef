"""The agents' HTTP interface is given bytes and requests that no trainer sends, over sockets.

Each is answered with 4xx and a sentence, or as it should be; nothing without the token reaches anything; neither answers nor the
log has a traceback; and the agent still serves.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import strategies as st

from fuzz.strategies import damaged, fuzz, integers, mutated, nested, odd_floats, texts, trees
from spinrun_protocol.ledger import Manifest
from spinrun_worker.bearer import Bearer
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.rollout.activation import Activator
from spinrun_worker.rollout.app import RolloutApp, ServingLimits
from spinrun_worker.rollout.gate import Gate
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.rollout.sampling import Sampler
from spinrun_worker.scorer.app import ScorerApp, ScorerMetrics
from spinrun_worker.serving import Guard, HttpLimits, listening
from spinrun_worker.vllm.engine import Engine
from support.fake_vllm import FakeVllm
from support.raw_http import Answer, request, send
from support.rollouts import AUTHORIZED, TOKEN, UID, AgentClient, Publisher

Json = Any

LIMITS = HttpLimits(max_body_bytes=100_000, max_connections=64, head_seconds=2, body_seconds=0.5)
REFUSALS = {400, 401, 404, 405, 408, 409, 413, 417, 429}
VERSION = 3


class Log(logging.Handler):
    """Collects what is logged with a traceback, or as an error."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.faults.append(record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else ""))

    def taken(self) -> list[str]:
        """Those since the last time: one input is not blamed for another's."""
        faults, self.faults = self.faults, []
        return faults


class Attacked:
    """An agent that serves a version of a run, and the vLLM behind it."""

    def __init__(self, port: int, vllm: FakeVllm, client: AgentClient, manifest: Manifest, log: Log) -> None:
        self.port = port
        self.vllm = vllm
        self.client = client
        self.manifest = manifest
        self.log = log

    async def send(self, *pieces: bytes) -> list[Answer]:
        return await send(self.port, *pieces, idle_seconds=0.05, patience_seconds=0.2)

    async def assert_serves(self) -> None:
        """It has logged nothing that is a fault of ours, and answers prompts."""
        assert not self.log.taken()
        if (await self.client.state()).get("servingDigest") != self.manifest.digest:
            await self.client.serve(self.manifest)
        status, lines = await self.client.samples(self.manifest, {"a": [5]})
        assert (status, [line["event"] for line in lines]) == (200, ["group", "end"])
        assert not self.log.taken()


def assert_answered_well(answers: list[Answer]) -> None:
    for answer in answers:
        assert answer.status in REFUSALS | {100, 200, 202, 503}, answer
        assert b"Traceback" not in answer.body
        if answer.status >= 400:
            assert answer.body, "a refusal without a word"


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm]:
    fake = FakeVllm()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def agent(vllm: FakeVllm, tmp_path: Path) -> AsyncGenerator[Attacked]:
    publisher = Publisher(tmp_path / "ledger")
    manifest = publisher.publish(VERSION)
    log = Log()
    logging.getLogger().addHandler(log)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        engine, gate, metrics = Engine(vllm.url, session), Gate(), RolloutMetrics()
        activation = Activator(Ledger(publisher.writer.root, UID), tmp_path / "scratch", engine, gate, metrics, poll_seconds=0.02)
        sampler = Sampler(engine, gate, metrics, max_sequences=512, engine_failed=activation.wake)
        guard = Guard(Bearer(TOKEN), LIMITS, on_refusal=lambda reason: metrics.refused.labels(reason).inc())
        app = RolloutApp(activation, gate, sampler, metrics, engine, guard=guard, limits=ServingLimits())
        loop = asyncio.create_task(activation.run())
        async with (
            listening(guard, app.application(), host="127.0.0.1", port=0) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        ):
            yield Attacked(port, vllm, AgentClient(client), manifest, log)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    logging.getLogger().removeHandler(log)


# --- bytes ---------------------------------------------------------------------------------------------------------

TOKENS = (
    *(
        b"GET ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"CONNECT ",
        b"JUGGLE ",
        b"/v1/version",
        b"/v1/samples",
        b"/healthz",
        b"/metrics",
        b"*",
    ),
    *(b"http://x/", b"//", b"/../", b"%00", b"%2e%2e", b"?", b"#", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"\r\n"),
    *(b"\n", b"\r", b"\r\n\r\n", b"Host: x\r\n", f"Authorization: Bearer {TOKEN}\r\n".encode(), b"Authorization: Basic x\r\n"),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Encoding: gzip\r\n",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n"),
    *(
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Upgrade: h2c\r\n",
        b"X: y\r\n",
        b" folded\r\n",
    ),
    *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"{}", b"[" * 2000, b"\0" * 20, b"\x16\x03\x01", b"x" * 9000),
)
soups = st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join)


def samples_document(manifest: Manifest | None = None) -> Json:
    return {
        "version": VERSION,
        "digest": manifest.digest if manifest else "d",
        "sampling": {"n": 2, "temperature": 0.7, "topP": 0.9, "maxTokens": 3, "logprobs": False},
        "prompts": [{"id": "a", "tokens": [5, 6]}, {"id": "b", "tokens": [7]}],
    }


whole = st.sampled_from(
    [
        request("GET", "/v1/version", keep=True),
        request("GET", "/metrics", token=False),
        request("POST", "/v1/samples", body=json.dumps(samples_document()).encode(), keep=True),
        request("POST", "/v1/samples", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n",
        request("PUT", "/v1/version", "Expect: 100-continue", body=b"{}"),
    ]
)
connections = st.lists(damaged(whole) | soups | st.lists(whole, min_size=2, max_size=5).map(b"".join), min_size=8, max_size=8)


CHUNKS = (
    *(b"2\r\n{}\r\n", b"0\r\n\r\n", b"0\r\n", b"1;x=y\r\n{\r\n", b"x\r\n", b"-1\r\n", b"fffffffff\r\n"),
    *(b"3\r\n{}\r\n", b"\r\n", b"\0"),
)
chunked = st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=6).map(
    lambda chunks: request("POST", "/v1/samples", "Transfer-Encoding: chunked") + b"".join(chunks)
)


@fuzz(10, contents=st.lists(chunked, min_size=8, max_size=8), cut=st.integers(150, 250))
async def test_bytes_in_chunks(agent: Attacked, contents: list[bytes], cut: int) -> None:
    for answers in await asyncio.gather(*(agent.send(content[:cut], content[cut:]) for content in contents)):
        assert_answered_well(answers)
    await agent.assert_serves()


@fuzz(50, contents=connections, cut=st.integers(0, 200))
async def test_bytes(agent: Attacked, contents: list[bytes], cut: int) -> None:
    """Eight connections at once, in two pieces each."""
    for answers in await asyncio.gather(*(agent.send(content[:cut], content[cut:]) for content in contents)):
        assert_answered_well(answers)
    await agent.assert_serves()


PATHS = ["/v1/version", "/v1/samples", "/v1/", "/classify", "//v1/samples", "/%76%31/samples", "/", "/x"]
METHODS = ["GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "HEAD"]
WRONG_TOKENS = ["Bearer", "Bearer ", f"bearer {TOKEN}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "\xff", "x" * 3000]


@fuzz(
    60,
    path=st.sampled_from(PATHS),
    method=st.sampled_from(METHODS),
    tokens=st.lists(st.sampled_from(WRONG_TOKENS), max_size=3),
    body=st.binary(max_size=50),
)
async def test_requests_without_the_token(agent: Attacked, path: str, method: str, tokens: list[str], body: bytes) -> None:
    asked, state = len(agent.vllm.completions), await agent.client.state()

    (answer,) = await agent.send(request(method, path, *[f"Authorization: {token}" for token in tokens], body=body, token=False))

    assert answer.status == 401
    assert method == "HEAD" or json.loads(answer.body)["reason"] == "Unauthorized"
    assert len(agent.vllm.completions) == asked
    assert await agent.client.state() == state


# --- documents -----------------------------------------------------------------------------------------------------

numbers = odd_floats | integers | st.sampled_from([10**400, -(10**400), 10**4299])
values = trees(numbers | texts | st.none() | st.booleans()) | numbers | st.builds(nested, st.just(500)) | st.just("x" * 50_000)


def to_text(document: Json) -> bytes:
    """JSON, also of what it does not have: NaN, and numbers of any length."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


odd_bodies = st.binary(max_size=40) | st.sampled_from(
    [
        b"",
        b"[" * 50_000,
        b'{"a":' * 20_000,
        b"9" * 90_000,
        b"NaN",
        b"\xef\xbb\xbf{}",
        b'{"version": 1, "version": 2}',
        b'"\xff"',
        b'"\\ud83d"',
    ]
)


async def post(agent: Attacked, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    headers = AUTHORIZED | {"Content-Type": "application/json"}
    async with agent.client.client.request(method, path, data=body, headers=headers) as response:
        return response.status, await response.read()


def assert_refused_in_words(status: int, body: bytes, expected: set[int]) -> None:
    assert status in expected, (status, body[:300])
    refusal = json.loads(body)
    assert refusal["reason"]
    assert " " in refusal["error"]


@fuzz(150, document=mutated(st.just(samples_document()), values))
async def test_odd_requests_for_samples(agent: Attacked, document: Json) -> None:
    await agent.assert_serves()
    if isinstance(document, dict) and document.get("digest") == "d":
        document["digest"] = agent.manifest.digest

    status, body = await post(agent, "POST", "/v1/samples", to_text(document))

    if status == 200:
        *lines, end = [json.loads(line) for line in body.splitlines()]
        assert end == {"event": "end"}
        assert sorted(line["id"] for line in lines) == sorted(prompt["id"] for prompt in document["prompts"])
        assert {line["event"] for line in lines} <= {"group", "failed"}
    else:
        assert_refused_in_words(status, body, {400, 409, 413})
    await agent.assert_serves()


@fuzz(80, data=st.data())
async def test_odd_wishes_for_versions(agent: Attacked, data: st.DataObject) -> None:
    document = {"version": VERSION, "manifest": agent.manifest.to_document()}
    wish = data.draw(mutated(st.just(document), values))

    status, body = await post(agent, "PUT", "/v1/version", to_text(wish))

    if status == 202:
        assert json.loads(body)["wanted"] == wish["version"]
    else:
        assert_refused_in_words(status, body, {400, 413})
    await agent.assert_serves()


@fuzz(40, method_path=st.sampled_from([("POST", "/v1/samples"), ("PUT", "/v1/version")]), body=odd_bodies)
async def test_bodies_that_are_not_documents(agent: Attacked, method_path: tuple[str, str], body: bytes) -> None:
    assert_refused_in_words(*await post(agent, *method_path, body), {400})
    await agent.assert_serves()


# --- the agent of a scorer -----------------------------------------------------------------------------------------


@pytest.fixture
async def scorer(vllm: FakeVllm) -> AsyncGenerator[int]:
    guard = Guard(Bearer(TOKEN), LIMITS, on_refusal=lambda _: None)
    async with aiohttp.ClientSession() as session:
        app = ScorerApp(vllm.url, session, ScorerMetrics(), guard=guard).application()
        async with listening(guard, app, host="127.0.0.1", port=0) as port:
            yield port


@fuzz(20, contents=connections)
async def test_bytes_to_a_scorer(scorer: int, contents: list[bytes]) -> None:
    contents = [content.replace(b"/v1/samples", b"/classify").replace(b"/v1/version", b"/score") for content in contents]
    for answers in await asyncio.gather(
        *(send(scorer, content, idle_seconds=0.05, patience_seconds=0.2) for content in contents)
    ):
        assert_answered_well(answers)
    (answer,) = await send(scorer, request("GET", "/readyz", token=False))
    assert answer.status == 200
