"""One child process: started under a guard, its output in a log file."""

import asyncio
import os
import random
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from spinrun_api.redaction import redacted_argv, redacted_text
from spinrun_cli.local.files import open_regular, open_to_append
from spinrun_protocol import child_process
from spinrun_protocol.commands import PYTHON, Process

LONGEST_LINE = 500
"""Characters of a log line that are shown."""
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""A file of the working directory, such as json.py in somebody's download, must not take the place of a module that we import."""
PORT_TAKEN = "address already in use"
# Below the ports that the kernel gives to outgoing connections, and that torch and vLLM pick for themselves.
PORTS = range(20000, 32000)


class Child:
    """A process that may be started many times, one life after the other."""

    def __init__(self, name: str, log: Path) -> None:
        """Starts nothing yet.

        Args:
            name: What people call it.
            log: File that the output of all lives is appended to.
        """
        self.name = name
        self.log = log
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, process: Process, environment: Mapping[str, str]) -> None:
        """Start a life.

        Args:
            process: Its command line, and what it adds to the environment.
            environment: Of all children.
        """
        command = [sys.executable if word == PYTHON else word for word in process.command]
        with open_to_append(self.log) as log:
            shown = " ".join(redacted_argv(command))
            log.write(f"--- {datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {shown}\n".encode(errors="replace"))
            log.flush()
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", child_process.__file__, str(os.getpid()), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, **SAFE_PATH, **process.environment},
                start_new_session=True,
            )

    async def wait(self) -> int:
        """The exit code of this life; 128 plus its number for a signal."""
        assert self._process is not None, "wait follows start"
        code = await self._process.wait()
        if code < 0:
            # The guard itself was killed, and could not clean up.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Ask it to end in good order."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with all that it has started."""
        self._signal(child_process.KILL)

    async def stop(self, seconds: float) -> None:
        """Ask it to end, kill it when it has not after this time, and wait until it is gone."""
        if not self.running:
            return
        self.terminate()
        try:
            await asyncio.wait_for(self.wait(), seconds)
        except TimeoutError:
            self.kill()
            await self.wait()

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of what this life has written, without secrets."""
        try:
            with open_regular(self.log) as log:
                log.seek(self._log_start)
                lines = [line.decode(errors="replace").rstrip()[:LONGEST_LINE] for line in deque(log, maxlen=count)]
                return list(map(redacted_text, lines))
        except OSError:
            return []

    def found_port_taken(self) -> bool:
        """Whether this life ended because another process has its port."""
        return any(PORT_TAKEN in line.lower() for line in self.last_lines(60))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            with suppress(ProcessLookupError):
                # Not send_signal: it looks whether the process has ended, and so takes the exit code away from asyncio.
                os.kill(self._process.pid, number)


def free_port(taken: set[int]) -> int:
    """A port of the loopback interface that nobody listens on and that is not among those taken; it is added to them.

    By chance: another run on this machine, whose processes have not opened their ports yet, would find the same first one.
    """
    for port in random.sample(PORTS, len(PORTS)):
        if port not in taken and _is_free(port):
            taken.add(port)
            return port
    raise RuntimeError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
