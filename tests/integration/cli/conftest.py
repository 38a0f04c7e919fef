"""The command line on a real control plane, beside the operator as a process and scripted pods."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest

from integration.control_plane import ControlPlane
from integration.operator.cluster import Cluster
from integration.operator.conftest import crd
from integration.operator.process import Process, operator_process
from spinrun_cli.cluster.client import Access, connect

__all__ = ["crd"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    error: str


Command = Callable[..., Awaitable[Ended]]


async def execute(*command: str, stdin: str | None = None, **environment: str) -> Ended:
    """Runs a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate(None if stdin is None else stdin.encode())
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), error.decode())


@pytest.fixture
async def cluster(
    control_plane: ControlPlane, crd: None, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """The test's namespace, reached as the commands reach it."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    async with connect(Access(namespace=namespace)) as reached:
        yield Cluster(reached.api, reached.namespace)


@pytest.fixture
def spinrun(cluster: Cluster, control_plane: ControlPlane) -> Command:
    """`spinrun ARGUMENTS -n NAMESPACE`."""

    async def run(*arguments: str, stdin: str | None = None) -> Ended:
        command = (sys.executable, "-m", "spinrun_cli.main", *arguments, "-n", cluster.namespace)
        return await execute(*command, stdin=stdin, KUBECONFIG=str(control_plane.kubeconfig))

    return run


@pytest.fixture
async def operator(cluster: Cluster, control_plane: ControlPlane) -> AsyncIterator[Process]:
    """The operator as the process that a cluster runs."""
    async with operator_process(control_plane.kubeconfig, cluster.namespace) as process:
        yield process
