"""Objects of others, however many and large, do not fill the operator's memory."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from spinrun_kube.kinds import SPIN_RUN
from support.ports import free_port
from support.scripted_api import LIST, WATCH, Behaviour, ScriptedApi, begin, scripted_api
from unit.operator.test_hostile_api import run_body

MOST_MIB = 200
SIZE = 1_000_000


def foreign(kind: str, count: int, shape: str) -> Behaviour:
    """A list of so many objects with our label and of that shape, a megabyte each, from a server that knows no metadata alone."""
    filling = json.dumps("a" * SIZE)

    async def answer(request: web.Request) -> web.StreamResponse:
        start, limit = int(request.query.get("continue") or 0), int(request.query["limit"])
        end = min(count, start + limit)
        following = str(end) if end < count else ""
        response = await begin(request)
        metadata = json.dumps({"resourceVersion": "5000", "continue": following})
        await response.write(f'{{"kind": "{kind}List", "apiVersion": "v1", "metadata": {metadata}, "items": ['.encode())
        for number in range(start, end):
            owner = {"kind": "SpinRun", "name": "demo", "uid": f"forged-{number}", "controller": True}
            about = {"name": f"evil-{number}", "namespace": "team", "uid": f"u-{number}", "resourceVersion": "7"}
            about |= {"labels": {"spinrun.dev/run": "demo"}, "ownerReferences": [owner]}
            body = f'{{"metadata": {json.dumps(about)}, {shape % filling}}}'
            await response.write((", " if number > start else "").encode() + body.encode())
        await response.write(b"]}")
        return response

    return answer


def events(kind: str, count: int, shape: str) -> Behaviour:
    """The same as events of a watch, then silence."""
    filling = json.dumps("a" * SIZE)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        for number in range(count):
            about = {"name": f"new-{number}", "namespace": "team", "uid": f"n-{number}", "resourceVersion": str(6000 + number)}
            about |= {"labels": {"spinrun.dev/run": "demo"}}
            body = f'{{"kind": "{kind}", "metadata": {json.dumps(about)}, {shape % filling}}}'
            await response.write(f'{{"type": "ADDED", "object": {body}}}\n'.encode())
        await asyncio.sleep(60)
        return response

    return answer


@asynccontextmanager
async def operator_process(kubeconfig: Path) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """An operator as a cluster runs it, and where it answers."""
    port = free_port()
    settings = {"KUBECONFIG": str(kubeconfig), "SPINRUN_HTTP_PORT": str(port), "SPINRUN_POD_MONITOR": "false"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "spinrun_operator", env=os.environ | settings)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def until_ready(process: asyncio.subprocess.Process, url: str) -> None:
    """Waits until the operator has seen what is there."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            assert process.returncode is None, "the operator ended"
            try:
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def peak_mib(pid: int) -> float:
    """Largest resident memory of a process so far."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_memory_is_bounded_whatever_others_store_under_our_label(tmp_path: Path) -> None:
    config_map, pod = '"data": {"x": %s}', '"spec": {"containers": [{"name": "a", "command": [%s]}]}'
    async with scripted_api(tmp_path) as (api, kubeconfig):
        api.answers[LIST, "configmaps"] = foreign("ConfigMap", 450, config_map)
        api.answers[WATCH, "configmaps"] = events("ConfigMap", 50, config_map)
        api.answers[LIST, "pods"] = foreign("Pod", 50, pod)
        async with operator_process(kubeconfig) as (process, url):
            await until_ready(process, url)
            api.put(SPIN_RUN, run_body("demo"))
            async with asyncio.timeout(20):
                while not api.asked["post", "jobs"]:  # noqa: ASYNC110 - what is waited for happens in another process
                    await asyncio.sleep(0.05)
            assert peak_mib(process.pid) < MOST_MIB
            assert own_labels(api) == {"demo"}


def own_labels(api: ScriptedApi) -> set[str]:
    """Runs whose children were made."""
    documents = (each for (plural, _, _), each in api.objects.items() if plural not in ("spinruns", "events"))
    return {document["metadata"]["labels"]["spinrun.dev/run"] for document in documents}
