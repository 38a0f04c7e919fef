"""The status of a run that is starting waits for more to tell, and no longer than it may."""

import asyncio
from dataclasses import replace
from typing import Any

from spinrun_kube.api import ApiError
from spinrun_operator.controller import Controller
from spinrun_operator.metrics import Metrics
from unit.operator.test_executor import KEY, FakeApi
from unit.operator.world import SETTINGS, START, run_of


def new_run(starting_seconds: float) -> tuple[Any, Controller]:
    """An API server with a run, and a controller that has seen it."""
    body = run_of().to_document()
    body["metadata"]["resourceVersion"] = "1"
    api: Any = FakeApi(body)
    controller = Controller(api, replace(SETTINGS, starting_seconds=starting_seconds), Metrics(), clock=lambda: START)
    controller.run_changed("ADDED", body)
    return api, controller


async def test_children_are_made_at_once_and_the_status_is_written_when_its_time_is_over() -> None:
    api, controller = new_run(0.2)
    again = await controller._work(KEY)
    assert again is not None
    assert 0 < again < 0.21
    assert "Job/demo-trainer-1" in api.writes
    assert "status" not in api.writes
    await controller._work(KEY)
    assert "status" not in api.writes, "another look makes no difference"
    await asyncio.sleep(again + 0.05)
    await controller._work(KEY)
    assert api.run["status"]["phase"] == "Pending"


async def test_refused_child_is_told_at_once() -> None:
    api, controller = new_run(3600)
    api.refusals["Service/demo-rollout"] = ApiError(403, "Forbidden", "exceeded quota: tight")
    assert await controller._work(KEY) == 0.0
    await controller._work(KEY)
    assert "exceeded quota" in str(api.run["status"])


async def test_invalid_spec_is_told_at_once() -> None:
    api, controller = new_run(3600)
    body = api.run | {"spec": {"x": 1}, "metadata": api.run["metadata"] | {"resourceVersion": "2"}}
    controller.run_changed("MODIFIED", body)
    await controller._work(KEY)
    assert api.writes == ["status"]
