"""The chart as installed on a control plane, and the operator's process run as the chart's pod would run it."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from integration.control_plane import ControlPlane, KubectlError
from integration.operator.process import Process
from unit.chart.helm import CHART, environment, helm

Json = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """A release named `spinrun`."""

    control_plane: ControlPlane
    namespace: str
    """The operator's."""

    async def helm(self, *arguments: str | Path) -> str:
        """Runs Helm in the release's namespace and returns its stdout; raises HelmError."""
        where = ("--kubeconfig", self.control_plane.kubeconfig, "--namespace", self.namespace)
        return await asyncio.to_thread(helm, *arguments, *where)

    async def install(self, *arguments: str | Path, chart: Path = CHART) -> str:
        """Installs, or upgrades to, a chart, and waits until the operator's pod is ready; returns what Helm says."""
        return await self.helm("upgrade", "--install", "spinrun", chart, "--wait", "--timeout", "60s", *arguments)

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Json:
        """An object, of the operator's namespace unless told otherwise; raises KubectlError when it is not there."""
        found = await self.control_plane.kubectl_async("get", kind, name, "-n", namespace or self.namespace, "-o", "json")
        return json.loads(found)

    @property
    def user(self) -> str:
        """The operator as the API server knows it."""
        return f"system:serviceaccount:{self.namespace}:spinrun-operator"

    @property
    def audit_log(self) -> Path:
        """What the API server was asked for, and by whom."""
        assert self.control_plane.state is not None
        return self.control_plane.state / "audit.log"

    async def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig with a token of the chart's ServiceAccount and nothing else."""
        kubectl = self.control_plane.kubectl_async
        token = await kubectl("create", "token", "spinrun-operator", "-n", self.namespace)
        config = yaml.safe_load(self.control_plane.kubeconfig.read_text())
        config["users"] = [{"name": each["name"], "user": {"token": token}} for each in config["users"]]
        file = folder / "operator.kubeconfig"
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))
        return file

    @contextlib.asynccontextmanager
    async def operator(self, folder: Path) -> AsyncGenerator[Process, None]:
        """The operator's process, just started, with the environment and the rights of the chart's pod, and no others."""
        variables = environment(await self.get("deployment", "spinrun-operator"))
        variables |= {"KUBECONFIG": str(await self.kubeconfig(folder)), "PATH": os.environ["PATH"]}
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "spinrun_operator", env=variables)
        try:
            yield Process(process, int(variables["SPINRUN_HTTP_PORT"]))
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def may(release: Release, user: str, *action: str) -> bool:
    """Whether a user has the right to do something, in the words of `kubectl auth can-i`."""
    try:
        await release.control_plane.kubectl_async("auth", "can-i", *action, "--as", user)
    except KubectlError:
        return False
    return True
