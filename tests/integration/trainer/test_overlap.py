"""Rollouts that are a window ahead of the trainer."""

import asyncio
import json
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from integration.trainer.conftest import TOKEN
from integration.trainer.test_trainer_killed import end_state, killed_and_resumed
from integration.trainer.test_windows import LN2, completed, spec, steps
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.wire import SamplesRequest
from spinrun_worker.ledger import Ledger, read_metrics
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


def digest(ledger: Ledger, version: int) -> str:
    return ledger.verify("weights", version).digest


def test_a_window_learns_from_answers_of_the_version_before_and_starts_at_its_own_reference(
    attempts: Attempts, tmp_path: Path
) -> None:
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=4, method=OVERLAP, keepCheckpoints=9))

    windows = [ledger.verify("window", number) for number in range(4)]
    assert [window.version for window in windows] == [0, 0, 1, 2]
    assert [window.parent for window in windows[2:]] == [digest(ledger, version) for version in (1, 2)]
    assert windows[0].parent == windows[1].parent, "both are version 0's"
    references = [window.reference for window in windows if window.reference is not None]
    assert [reference.version for reference in references] == [0, 1, 2, 3]
    assert [reference.digest for reference in references[1:]] == [digest(ledger, version) for version in (1, 2, 3)]
    assert [line.version for line in steps(ledger)] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [line.values["loss"] for line in steps(ledger)][::2] == pytest.approx([LN2] * 4, abs=1e-6)


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


def test_every_version_is_evaluated_by_its_own_answers(attempts: Attempts, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    assert attempts.run(ledger, method=OVERLAP, duration={"windows": 3}) == 0, attempts.log(1).read_text()
    sound = Ledger(ledger, UID)
    evaluations = [sound.verify("evaluation", number) for number in range(4)]
    references = [sound.verify("window", number).reference for number in range(3)]
    assert [each.parent for each in evaluations[:3]] == [each and each.digest for each in references]
    lines = [(line.window, line.version) for line in read_metrics(sound.layout.metrics) if line.event == "evaluation"]
    assert lines == [(0, 0), (1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("windows", [3, 2], ids=["before a window", "at the end"])
def test_a_run_stopped_while_it_waits_for_the_rollouts_goes_on_as_if_it_had_not(
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(OVERLAP, id="its own reference"),
        pytest.param({"refUpdateFreq": 0, "rolloutUpdateFreq": 2, "overlap": 1, "replayWindows": 1}, id="the first, and replay"),
    ],
)
def test_a_run_killed_at_any_file_of_a_window_ends_in_the_same_state(attempts: Attempts, tmp_path: Path, method: Json) -> None:
    def of(windows: int) -> Json:
        return spec(attempts, windows=windows, method=method, keepCheckpoints=1, checkpointEverySteps=1)

    undisturbed, prefix, listed = tmp_path / "undisturbed", tmp_path / "prefix", tmp_path / "changes"
    completed(attempts, undisturbed, **of(3))
    want = end_state(undisturbed)
    completed(attempts, prefix, **of(2))
    unkilled = Path(shutil.copytree(prefix, tmp_path / "unkilled"))
    assert attempts.run(unkilled, attempt=2, list_to=listed, **of(3)) == 0, attempts.log(2).read_text()
    assert end_state(unkilled) == want, "a longer run goes on exactly where a shorter one ended"

    num_changes = len(listed.read_text().splitlines())
    assert num_changes > 20
    for change in range(1, num_changes + 1, 2):
        got, where = killed_and_resumed(attempts, prefix, change, **of(3))
        assert got == want, where


def test_weights_that_a_window_is_still_to_be_sampled_from_are_missed_and_made_again(attempts: Attempts, tmp_path: Path) -> None:
    """The run goes back to a checkpoint from which it can publish them."""
    options = spec(attempts, windows=4, method=OVERLAP, keepCheckpoints=2)
    undisturbed = completed(attempts, tmp_path / "undisturbed", **options)
    ledger = completed(attempts, tmp_path / "ledger", **spec(attempts, windows=3, method=OVERLAP, keepCheckpoints=2))
    (ledger.layout.weights(2) / "MANIFEST.json").unlink()

    assert attempts.run(ledger.root, attempt=2, **options) == 0, attempts.log(2).read_text()
    log = attempts.log(2).read_text()
    assert "window 3 cannot be resumed" in log
    assert "resuming from the checkpoint at step 4" in log
    assert end_state(ledger.root) == end_state(undisturbed.root)
    assert json.loads(attempts.last_words(2).read_text())["result"] == "Complete"
