"""The figures that rank 0 tells, in the run's status."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from integration.control_plane import ControlPlane
from integration.fake_kubelet import FakeKubelet
from integration.operator.cluster import Cluster, RunningOperator, spin_run
from spinrun_api.status import Best, Metrics, RolloutStatus
from spinrun_protocol.commands import TRAINER_PORT
from spinrun_protocol.wire import Progress

pytestmark = pytest.mark.cluster

HOST = "127.0.0.53"


class FakeTrainer:
    """Rank 0 as far as /progress goes."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.asked = 0

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[None, None]:
        """Serves while the block runs."""
        app = web.Application()
        app.add_routes([web.get("/progress", self._answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, HOST, TRAINER_PORT).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.progress is None:
            return web.Response(text="not yet", status=503)
        return web.Response(text=self.progress.model_dump_json(by_alias=True), content_type="application/json")


@pytest.fixture
async def trainer() -> AsyncIterator[FakeTrainer]:
    """A trainer at the address of every pod of this test."""
    fake = FakeTrainer()
    async with fake.serve():
        yield fake


@pytest.fixture
async def fake_kubelet(control_plane: ControlPlane) -> AsyncIterator[FakeKubelet]:
    """Pods that have the fake trainer's address."""
    async with FakeKubelet(control_plane.kubeconfig, pod_ip=lambda _: HOST) as kubelet:
        yield kubelet


async def test_status_shows_the_trainers_progress_and_writes_only_news(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, trainer: FakeTrainer
) -> None:
    uid = (await cluster.create(spin_run()))["metadata"]["uid"]
    await cluster.until_phase("Running")
    trainer.progress = Progress(
        uid=uid,
        attempt=1,
        activity="train",
        window=2,
        windows=8,
        step=33,
        total_steps=128,
        version=2,
        rollouts=RolloutStatus(ready=1, desired=1, version=2),
        metrics=Metrics(loss=0.69314718, accuracy=0.5, samples_per_second=12.5),
        best=Best(window=1, version=1, accuracy=0.51),
        eta_seconds=600,
    )
    status = await cluster.until_phase("Running", window=2, windows=8, step=33, totalSteps=128, version=2, activity="train")
    assert status["metrics"] == {"loss": 0.6931, "accuracy": 0.5, "samplesPerSecond": 12.5}
    assert status["best"] == {"window": 1, "version": 1, "accuracy": 0.51}
    assert status["rollouts"] == {"ready": 1, "desired": 1, "version": 2}
    assert status["eta"] > status["startTime"]

    await operator.until_idle()
    written, asked = len(operator.api.writes), trainer.asked
    trainer.progress = trainer.progress.model_copy(update={"eta_seconds": 500, "prompts_done": 7})
    await cluster.until("it is asked again", lambda: has_been_asked(trainer, asked + 3))
    assert len(operator.api.writes) == written
    trainer.progress = trainer.progress.model_copy(update={"window": 3})
    await cluster.until_phase("Running", window=3)
    assert len(operator.api.writes) == written + 1


async def has_been_asked(trainer: FakeTrainer, times: int) -> bool:
    """Whether the operator has asked so often."""
    return trainer.asked >= times


async def test_progress_of_another_run_is_not_believed(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, trainer: FakeTrainer
) -> None:
    trainer.progress = Progress(uid="other", attempt=1, activity="train", window=7, windows=8, step=1, total_steps=2)
    await cluster.create(spin_run())
    await cluster.until_phase("Running")
    await cluster.until("it is asked", lambda: has_been_asked(trainer, 3))
    await operator.until_idle()
    assert "window" not in await cluster.status()


async def test_attempt_that_tells_the_same_for_too_long_is_ended(
    cluster: Cluster, operator: RunningOperator, fake_kubelet: FakeKubelet, trainer: FakeTrainer
) -> None:
    created = await cluster.create(spin_run(lifecycle={"progressDeadlineSeconds": 2}))
    trainer.progress = Progress(
        uid=created["metadata"]["uid"], attempt=1, activity="publish", window=7, windows=8, step=1, total_steps=2
    )
    await cluster.until_phase("Running", activity="publish")
    for beats in range(1, 40):
        trainer.progress = trainer.progress.model_copy(update={"beats": beats})
        await asyncio.sleep(0.1)
    assert (await cluster.status())["attempt"] == 1, "it works"
    status = await cluster.until_phase("Running", attempt=2)
    assert status["failedAttempts"] == 1
    (event,) = [event for event in await cluster.events() if event["reason"] == "ProgressDeadlineExceeded"]
    assert "last seen: publish, window 7, step 1" in event["message"]
