"""The operator as a process of its own, and what a test asks it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp

from support.ports import free_port

START_SECONDS = 60


class Process:
    """An operator in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def ask(self, path: str) -> tuple[int, str]:
        """Status and text of an answer; status 0 while nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def until_ready(self) -> None:
        """Waits until it has seen what is there."""
        async with asyncio.timeout(START_SECONDS):
            while (await self.ask("/readyz"))[0] != 200:
                assert self.process.returncode is None, "the operator ended"
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def operator_process(kubeconfig: Path, namespace: str) -> AsyncGenerator[Process, None]:
    """Starts an operator for one namespace, and kills it if it is still there at the end."""
    port = free_port()
    settings = {
        "KUBECONFIG": str(kubeconfig),
        "SPINRUN_WATCH_NAMESPACES": namespace,
        "SPINRUN_ACCELERATOR": "cpu",
        "SPINRUN_HTTP_PORT": str(port),
        "SPINRUN_RESTART_DELAY_SECONDS": "0.2",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "spinrun_operator", env=os.environ | settings)
    try:
        operator = Process(process, port)
        await operator.until_ready()
        yield operator
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
