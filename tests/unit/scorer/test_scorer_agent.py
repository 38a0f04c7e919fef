"""The agent in front of a scorer's vLLM: who is let in, and what is handed on."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from spinrun_worker.bearer import Bearer
from spinrun_worker.scorer.app import ScorerApp, ScorerMetrics
from spinrun_worker.serving import Guard, HttpLimits

AUTHORIZED = {"Authorization": "Bearer secret"}


class FakeVllm:
    """A vLLM that says what a test wants, and is up or down when it wants: a real one cannot be told to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str]] = []
        self.is_healthy = True
        self.cancelled = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        app = web.Application()
        app.router.add_post("/classify", self._post)
        app.router.add_post("/score", self._post)
        app.router.add_post("/tokenize", self._post)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self.server = TestServer(app)

    async def _post(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json(), request.headers.get("Authorization", "")))
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if request.path == "/score":
            return web.json_response({"error": "too long"}, status=400)
        return web.json_response({"data": [1.5]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.is_healthy else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 3.0\nprocess_open_fds 9.0\n")


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm]:
    fake = FakeVllm()
    await fake.server.start_server()
    yield fake
    fake.may_answer.set()
    await fake.server.close()


@pytest.fixture
async def client(vllm: FakeVllm) -> AsyncGenerator[TestClient[Any, Any]]:
    async with aiohttp.ClientSession() as session:
        agent = ScorerApp(
            str(vllm.server.make_url("")),
            session,
            ScorerMetrics(),
            guard=Guard(Bearer("secret"), HttpLimits(), on_refusal=lambda _: None),
        )
        server = TestServer(agent.application())
        await server.start_server()
        async with TestClient(server) as client:
            yield client


async def test_what_vllm_answers_is_handed_on_as_it_is(client: TestClient[Any, Any], vllm: FakeVllm) -> None:
    async with client.post("/classify", json={"input": ["a"]}, headers=AUTHORIZED) as response:
        assert (response.status, await response.json()) == (200, {"data": [1.5]})
    async with client.post("/score", json={"text_1": "a"}, headers=AUTHORIZED) as response:
        assert (response.status, await response.json()) == (400, {"error": "too long"})
    assert vllm.asked == [("/classify", {"input": ["a"]}, ""), ("/score", {"text_1": "a"}, "")], "and the token goes no further"


@pytest.mark.parametrize("authorization", [None, "", "Bearer ", "Bearer wrong", "secret", "Bearer s\u00e9cret", "Bearer \udcff"])
@pytest.mark.parametrize("path", ["/classify", "/score"])
async def test_the_token_is_required(client: TestClient[Any, Any], vllm: FakeVllm, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with client.post(path, json={}, headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (401, "Unauthorized")
    assert vllm.asked == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/tokenize"), ("POST", "/v1/score"), ("OPTIONS", "/score"), ("GET", "/classify"), ("POST", "/score/")],
)
async def test_nothing_else_of_vllm_can_be_reached(client: TestClient[Any, Any], vllm: FakeVllm, method: str, path: str) -> None:
    async with client.request(method, path, json={}, headers=AUTHORIZED) as response:
        assert response.status in (404, 405)
    assert vllm.asked == []


async def test_a_vllm_that_does_not_answer_is_said_to_be_unavailable(client: TestClient[Any, Any], vllm: FakeVllm) -> None:
    await vllm.server.close()
    async with client.post("/classify", json={}, headers=AUTHORIZED) as response:
        assert response.status == 503
        body = await response.json()
    assert body["reason"] == "Unavailable"
    assert body["error"].startswith("vLLM does not answer: ")


async def test_a_client_that_goes_away_takes_its_request_to_vllm_with_it(client: TestClient[Any, Any], vllm: FakeVllm) -> None:
    vllm.may_answer.clear()
    with pytest.raises(TimeoutError):
        await client.post("/classify", json={}, headers=AUTHORIZED, timeout=aiohttp.ClientTimeout(total=0.3))
    async with asyncio.timeout(10):
        await vllm.cancelled.wait()


async def test_ready_means_that_vllm_serves(client: TestClient[Any, Any], vllm: FakeVllm) -> None:
    for healthy, status in ((True, 200), (False, 503)):
        vllm.is_healthy = healthy
        async with client.get("/readyz") as response:
            assert response.status == status
    async with client.get("/healthz") as response:
        assert response.status == 200, "the agent itself is well"


async def test_metrics_are_the_agents_and_vllms(client: TestClient[Any, Any]) -> None:
    await client.post("/classify", json={}, headers=AUTHORIZED)
    await client.post("/classify", json={})
    async with client.get("/metrics") as response:
        page = await response.text()
    assert 'spinrun_scorer_request_seconds_count{path="/classify",status="200"} 1.0' in page
    assert 'spinrun_scorer_request_seconds_count{path="/classify",status="401"} 1.0' in page
    assert "vllm:num_requests_running 3.0" in page
    assert "process_open_fds 9.0" not in page


async def test_a_body_that_is_too_large_is_refused(client: TestClient[Any, Any], vllm: FakeVllm) -> None:
    async with client.post("/classify", data=b"x" * ((64 << 20) + 1), headers=AUTHORIZED) as response:
        assert response.status == 413
    assert vllm.asked == []
