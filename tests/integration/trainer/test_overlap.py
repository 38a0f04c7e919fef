"""Rollouts that are a window ahead of the trainer."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from integration.trainer.conftest import TOKEN
from integration.trainer.test_trainer_killed import end_state
from integration.trainer.test_windows import completed, spec
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.wire import SamplesRequest
from spinrun_worker.ledger import Ledger
from support.scripted_agent import ScriptedAgent, random_digits
from support.trainer_process import UID, Attempts

Json = dict[str, Any]

OVERLAP: Json = {"refUpdateFreq": 2, "overlap": 1}


class WatchfulAgent(ScriptedAgent):
    """Has a version answer only once a file is there."""

    def __init__(self) -> None:
        super().__init__(random_digits, TOKEN)
        self.answer_after: dict[int, Path] = {}
        """The file, by version."""

    async def post_samples(self, request: web.Request) -> web.StreamResponse:
        asked = SamplesRequest.model_validate_json(await request.read())
        path = self.answer_after.get(asked.version)
        while path is not None and not path.exists():  # noqa: ASYNC110, a file has no event
            await asyncio.sleep(0.02)
        return await super().post_samples(request)


@contextmanager
def serving(agent: ScriptedAgent) -> Generator[str]:
    """URL of an agent in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = web.AppRunner(agent.app(), shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner.addresses[0][1]

    try:
        yield f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(start(), loop).result(10)}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_the_rollouts_answer_the_next_window_while_this_one_trains(attempts: Attempts, tmp_path: Path) -> None:
    """Version 1 answers window 2's prompts only once window 1 has been trained on, which would never be if the trainer waited."""
    root = tmp_path / "ledger"
    agent = WatchfulAgent()
    agent.answer_after = {1: Ledger(root, UID).layout.weights(2) / "MANIFEST.json"}
    with serving(agent) as url:
        ahead = replace(attempts, agent=url)
        completed(ahead, root, **spec(ahead, windows=3, method=OVERLAP))
    asked = [request.version for request in agent.asked]
    assert sorted({*asked}) == [0, 1], "nobody asks version 2 for a window that there is not"
    assert asked == sorted(asked)


@pytest.mark.parametrize("windows", [3, 2], ids=["before a window", "at the end"])
def test_a_run_stopped_while_it_waits_for_the_rollouts_continues_as_if_it_had_not(
    attempts: Attempts, tmp_path: Path, windows: int
) -> None:
    """Version 1 never answers, neither the prompts of window 2 nor the held-out ones; so the run is stopped before it can use
    version 2."""
    options: Json = {"method": OVERLAP, "duration": {"windows": windows}}
    undisturbed = completed(attempts, tmp_path / "undisturbed", **options)
    assert {"evaluation 1", "evaluation 2"} <= set(end_state(undisturbed.root))
    root = tmp_path / "stopped"
    agent = WatchfulAgent()
    agent.answer_after = {1: tmp_path / "never"}
    with serving(agent) as url:
        trainer = replace(attempts, agent=url).start(root, **options)
        published = Ledger(root, UID).layout.weights(2) / "MANIFEST.json"
        for _ in range(1200):
            trainer.join(0.05)
            if published.exists() or trainer.exitcode is not None:
                break
        trainer.terminate()
        trainer.join(60)
    assert trainer.exitcode == ExitCode.PREEMPTED, attempts.log(1).read_text()
    assert Ledger(root, UID).present("window") == [0, 1]
    assert attempts.run(root, attempt=2, **options) == 0, attempts.log(2).read_text()
    assert end_state(root) == end_state(undisturbed.root)
