"""How a trainer's answer about its progress is read: to its end, however it comes, and no further than its limits."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from spinrun_kube.answers import InvalidAnswerError
from spinrun_operator import progress as room
from spinrun_operator.progress import ProgressPoller, Target
from spinrun_operator.stall import StallClock
from spinrun_protocol.wire import Progress
from support import scripted_api as said
from support.ports import free_port
from support.scripted_api import Behaviour
from unit.operator.world import SETTINGS

Json = dict[str, Any]

TARGET = Target("127.0.0.1", "u", 1)
ANSWER: Json = {"uid": "u", "attempt": 1, "activity": "train", "window": 0, "windows": 3, "step": 1, "totalSteps": 9}


def content(**fields: Any) -> bytes:
    """An answer."""
    return json.dumps(ANSWER | fields).encode()


@asynccontextmanager
async def trainer(answer: Behaviour, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[ProgressPoller]:
    """Rank 0 that answers so, and who asks it."""
    port = free_port()
    monkeypatch.setattr(room, "TRAINER_PORT", port)
    monkeypatch.setattr(room, "TIMEOUT_SECONDS", 0.5)
    app = web.Application()
    app.router.add_get("/progress", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    poller = ProgressPoller(SETTINGS, lambda _: None, StallClock())
    try:
        yield poller
    finally:
        await poller.close()
        await runner.cleanup()


async def fetch(answer: Behaviour, monkeypatch: pytest.MonkeyPatch) -> Progress:
    """What is read of an answer."""
    async with trainer(answer, monkeypatch) as poller:
        return await poller._fetch(TARGET)


def pieces(whole: bytes, size: int, pause: float = 0.0) -> list[bytes | float]:
    """An answer cut into pieces of a size."""
    return [each for start in range(0, len(whole), size) for each in (whole[start : start + size], pause)]


LONG = content(message="x" * 3000)


@pytest.mark.parametrize(
    "answer",
    [
        said.stream(LONG),
        said.stream(LONG[:700], 0.05, LONG[700:]),
        said.stream(*pieces(LONG, 100, 0.005)),
        said.stream(*pieces(content(), 1)),
        said.stream(*pieces(content(message="ü" * 500), 7)),
        said.stream(content(message="y" * 900_000)),
        said.text(LONG),
    ],
    ids=["whole", "two pieces", "many pieces", "single bytes", "cut within a character", "nearly too long", "with its length"],
)
async def test_answer_is_read_to_its_end(answer: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await fetch(answer, monkeypatch)).total_steps == 9


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said.stream(content(message="x" * (1 << 20))), InvalidAnswerError),
        (said.stream(*[b" " * 65536] * 1000), InvalidAnswerError),
        (said.text(gzip.compress(b" " * 100_000_000), {"Content-Encoding": "gzip"}), ValueError),
        (said.text(gzip.compress(content()), {"Content-Encoding": "gzip"}), ValueError),
        (said.stream(*pieces(content(), 10, 0.2)), TimeoutError),
        (said.stream(content()[:50], 5.0), TimeoutError),
        (said.hang, TimeoutError),
        (said.stream(content()[:50], then_reset=True), aiohttp.ClientError),
        (said.stream(content()[:50]), ValueError),
        (said.text("", status=302, headers={"Location": "http://127.0.0.1:1/"}), ValueError),
        (said.text(content(), status=503), ValueError),
        (said.text(content(), status=206), ValueError),
        (said.text("<html>"), ValueError),
        (said.text("[]"), ValueError),
        (said.text("7"), ValueError),
        (said.text(b"\xff\xfe"), ValueError),
        (said.text(b'{"uid":' * 100_000), ValueError),
        (said.text(content(uid="another")), ValueError),
        (said.text(content(attempt=2)), ValueError),
        (said.text(content(etaSeconds=float("inf"))), ValueError),
        (said.text(content(metrics={"loss": float("nan")})), ValueError),
        (said.text(content(best={"window": 1, "version": 1, "accuracy": float("-inf")})), ValueError),
        (said.text(content(step=2**63)), ValueError),
        (said.text(content(rollouts={"ready": 10**30})), ValueError),
    ],
)
async def test_anything_else_is_refused_and_takes_neither_time_nor_memory(
    answer: Behaviour, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(error):
        await fetch(answer, monkeypatch)
    assert asyncio.get_running_loop().time() - began < 2


async def test_long_texts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = await fetch(said.text(content(trouble="y" * 100_000, message="z" * 100_000)), monkeypatch)
    assert (len(progress.trouble), len(progress.message)) == (room.TEXT_LIMIT, room.TEXT_LIMIT)


async def test_polling_survives_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [said.text("7"), said.hang, said.reset, said.text(content())]

    async def next_answer(request: web.Request) -> web.StreamResponse:
        return await (answers.pop(0) if len(answers) > 1 else answers[0])(request)

    async with trainer(next_answer, monkeypatch) as poller:
        monkeypatch.setattr(poller, "_settings", type("Fast", (), {"progress_seconds": 0.01, "progress_write_seconds": 0.0}))
        poller.follow(("team", "demo"), TARGET)
        async with asyncio.timeout(10):
            while poller.published(("team", "demo")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
