"""What the operator asks for because the copies of its watches may not agree with each other."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from spinrun_api.run import SpinRun
from spinrun_kube.kinds import CHILDREN, POD, Kind
from spinrun_operator.children.trainer_job import trainer_job
from spinrun_operator.informer import slim
from spinrun_operator.observe import Observer
from spinrun_operator.observed import Observed
from spinrun_operator.stall import StallClock
from unit.operator.world import SETTINGS, START, World, run_of

Json = dict[str, Any]

(JOB,) = [kind for kind in CHILDREN if kind.name == "Job"]
FAILED = {"type": "Failed", "status": "True", "reason": "Why", "message": "", "lastTransitionTime": "2026-01-01T12:00:00Z"}


class Lister:
    """An API that has only pods, and remembers what it was asked for."""

    def __init__(self, pods: tuple[Json, ...]) -> None:
        self.pods = pods
        self.asked: list[str] = []

    async def list(
        self, kind: Kind, namespace: str, *, labels: str, keep: Callable[[Json], Json | None]
    ) -> tuple[list[Json], str]:
        assert (kind, namespace) == (POD, "team")
        self.asked.append(labels)
        return [kept for pod in self.pods if (kept := keep(pod))], "7"


def trainer_pods(phase: str) -> tuple[Json, ...]:
    """The trainer's pod of attempt 1."""
    world = World()
    ended: Json = {"ended": {"exitCode": 1}} if phase == "Failed" else {}
    world.trainer_pod(phase=phase, **ended)
    return world.observed.pods


def ended_job(run: SpinRun, condition: str) -> Json:
    """The Job of attempt 1 with a condition, as the API server has it."""
    job = trainer_job(run, SETTINGS, attempt=1)
    job["metadata"]["uid"] = "uid-of-demo-trainer-1"
    return job | {"status": {"conditions": [{"type": condition, "status": "True"}]}}


async def observe(run: SpinRun, job: Json, seen: tuple[Json, ...], api: Lister) -> Observed:
    informers = [SimpleNamespace(kind=kind, of_run=lambda _, of=of: list(of)) for kind, of in ((JOB, (job,)), (POD, seen))]
    observer = Observer(api, informers, StallClock(), SETTINGS)  # type: ignore[arg-type]
    return await observer.observe(run, ("team", "demo"), refusals=(), progress=None, now=START)


@pytest.mark.parametrize("condition", ["Failed", "Complete"])
@pytest.mark.parametrize("seen", [trainer_pods("Running"), ()], ids=["pod-seen-running", "pod-not-seen"])
async def test_pods_of_a_job_that_has_ended_are_asked_for_when_their_end_was_not_seen(
    seen: tuple[Json, ...], condition: str
) -> None:
    run, api = run_of(), Lister(trainer_pods("Failed"))
    observed = await observe(run, ended_job(run, condition), seen, api)
    assert observed.pods == tuple(slim(pod, POD) for pod in api.pods)
    assert api.asked == [f"spinrun.dev/run-uid={run.metadata.uid},spinrun.dev/attempt=1"]


async def test_nothing_is_asked_when_the_pods_have_ended_too() -> None:
    run, api = run_of(), Lister(())
    seen = trainer_pods("Failed")
    assert (await observe(run, ended_job(run, "Failed"), seen, api)).pods == seen
    assert api.asked == []


async def test_nothing_is_asked_about_a_run_that_is_over() -> None:
    run, api = run_of(status={"conditions": [FAILED]}), Lister(())
    await observe(run, ended_job(run, "Failed"), (), api)
    assert api.asked == []
