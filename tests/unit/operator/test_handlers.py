"""kopf wakes the controller for every run that changes, reads nothing but the mirror, and may end without harm."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import kopf
import pytest

from spinrun_operator import handlers
from spinrun_operator.backoff import Backoff
from spinrun_operator.handlers import Mirror, waking
from spinrun_operator.queue import Key

Json = dict[str, Any]
Tell = Callable[[str, Json], None]


def run(name: str, version: int = 1) -> Json:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version), "labels": {"a": "b"}}
    return {"metadata": metadata, "spec": {"secret": "not for kopf"}}


class Controller:
    """What kopf's part knows of one."""

    def __init__(self, *runs: Json) -> None:
        self.runs = list(runs)
        self.tell: Tell | None = None
        self.woken: list[Key] = []

    def run_bodies(self) -> list[Json]:
        return self.runs

    def wake(self, key: Key) -> None:
        self.woken.append(key)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is another thread that changes it
            await asyncio.sleep(0.01)


@asynccontextmanager
async def kopf_for(controller: Controller) -> AsyncGenerator[Tell]:
    async with waking(controller):  # type: ignore[arg-type]
        await until(lambda: controller.tell is not None)
        assert controller.tell is not None
        yield controller.tell


async def test_kopf_wakes_for_runs_that_are_there_and_for_those_that_change() -> None:
    controller = Controller(run("one"), run("two"))
    async with kopf_for(controller) as tell:
        await until(lambda: len(controller.woken) == 2)
        assert sorted(controller.woken) == [("team", "one"), ("team", "two")]
        for change, body in (("ADDED", run("three")), ("MODIFIED", run("one", 2)), ("DELETED", run("two", 3))):
            tell(change, body)
        await until(lambda: len(controller.woken) == 5)
        assert sorted(controller.woken[2:]) == [("team", "one"), ("team", "three"), ("team", "two")]


async def test_once_kopf_has_ended_the_controller_wakes_itself() -> None:
    controller = Controller()
    async with kopf_for(controller):
        pass
    await until(lambda: controller.tell is None)


async def test_kopf_that_fails_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, operator = [], kopf.operator

    async def fails_first(**options: Any) -> None:
        starts.append(1)
        if len(starts) == 1:
            raise RuntimeError("gone")
        await operator(**options)

    monkeypatch.setattr(handlers.kopf, "operator", fails_first)
    monkeypatch.setattr(Backoff, "pause", lambda *_: 0.01)
    controller = Controller(run("one"))
    async with kopf_for(controller):
        await until(lambda: controller.woken == [("team", "one")])
    assert len(starts) == 2


async def test_the_mirror_shows_who_a_run_is_and_nothing_else() -> None:
    mirror = Mirror(Controller(run("one")), asyncio.get_running_loop())  # type: ignore[arg-type]
    answer = await mirror.request("get", "http://mirror.invalid/apis/spinrun.dev/v1alpha1/spinruns?limit=500")
    (item,) = (await answer.json())["items"]
    assert item == {"metadata": {"name": "one", "namespace": "team", "uid": "uid-one", "resourceVersion": "1"}}


@pytest.mark.parametrize(("method", "path"), [("patch", "/apis/spinrun.dev/v1alpha1/spinruns"), ("get", "/api/v1/secrets")])
async def test_the_mirror_knows_nothing_else(method: str, path: str) -> None:
    mirror = Mirror(Controller(), asyncio.get_running_loop())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=path):
        await mirror.request(method, f"http://mirror.invalid{path}")
