"""Sandboxes: processes that run a rule's code, with a time limit for each item.

A process that takes too long is killed, and the next item gets a new one: no code in there, however wild, stops the trainer.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from spinrun_worker.errors import ConfigurationError, RunError
from spinrun_worker.rewards.score import Failure, Item, Score

STARTUP_SECONDS = 300.0
"""Time limit for the imports of a sandbox; the user's module may load a model."""

MAX_DEATHS_IN_A_ROW = 64
"""Processes lost in a row without a single score, after which something other than the answers must be wrong."""


class Sandbox:
    """One process that runs a rule, started when it is needed. Not for use by two threads at once."""

    def __init__(self, *, timeout_seconds: float, entry_point: str | None = None) -> None:
        """Prepare a sandbox, and start nothing yet.

        Args:
            timeout_seconds: Time limit for one item.
            entry_point: The user's function, as module:function. None means math-verify.
        """
        self._timeout_seconds = timeout_seconds
        self._command = [
            sys.executable,
            "-m",
            "spinrun_worker.rewards.sandbox_process",
            "--timeout-seconds",
            str(timeout_seconds),
        ]
        if entry_point is not None:
            self._command += ["--entry-point", entry_point]
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._buffer = b""

    def start(self) -> None:
        """Start the process unless it is running.

        Raises:
            ConfigurationError: The process says that the rule cannot be used.
            RunError: It dies or does not get ready.
        """
        if self._process is not None:
            return
        self._channel, theirs = socket.socketpair()
        self._buffer = b""
        with theirs:
            # A session of its own: Ctrl-C in a terminal is for the trainer, and what the user's code starts is killed with it.
            self._process = subprocess.Popen(
                [*self._command, "--socket", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            reply = self._receive(time.monotonic() + STARTUP_SECONDS)
        except TimeoutError as error:
            self.close()
            raise RunError(f"the rule's process was not ready after {STARTUP_SECONDS:g} s") from error
        except OSError as error:
            raise RunError(f"the rule's process died as it started: {self._ending()}") from error
        if "error" in reply:
            self.close()
            raise ConfigurationError(f"preference.rule: {reply['error']}")

    def score(self, item: Item) -> Score:
        """The reward of one item, or why it has none, within the time limit. Raises as `start` does when it has to start."""
        self.start()
        deadline = time.monotonic() + self._timeout_seconds
        try:
            self._send(item, deadline)
            reply = self._receive(deadline)
        except TimeoutError:
            self.close()
            return Failure("too slow", f"no reward in {self._timeout_seconds:g} s")
        except OSError:
            return Failure("crashed", f"the rule's process died: {self._ending()}")
        return Failure(*reply["failure"]) if "failure" in reply else float(reply["reward"])

    def close(self) -> None:
        """Kill the process, and everything that it started."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if channel is not None:
            channel.close()
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _send(self, item: Item, deadline: float) -> None:
        assert self._channel is not None
        self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        self._channel.sendall(json.dumps(asdict(item), default=str).encode() + b"\n")

    def _receive(self, deadline: float) -> dict[str, Any]:
        """One reply. Raises TimeoutError, or another OSError when the process closed its side."""
        assert self._channel is not None
        while b"\n" not in self._buffer:
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            received = self._channel.recv(65536)
            if not received:
                raise ConnectionResetError("closed by the rule's process")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _ending(self) -> str:
        """How a process ended that closed its side. It gets a moment to exit; then it is killed."""
        process = self._process
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        self.close()
        code = process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class SandboxPool:
    """Applies a rule to many items in a few sandboxes at once."""

    def __init__(self, *, processes: int, timeout_seconds: float, entry_point: str | None = None) -> None:
        """Start one sandbox, to learn now whether the rule can be used; the others start when they are needed.

        Args:
            processes: Sandboxes at most.
            timeout_seconds: Time limit for one item.
            entry_point: The user's function, as module:function. None means math-verify.

        Raises:
            ConfigurationError: The rule cannot be used.
            RunError: The first process dies or does not get ready.
        """
        self._all = [Sandbox(timeout_seconds=timeout_seconds, entry_point=entry_point) for _ in range(processes)]
        self._all[0].start()
        # Last in, first out: as few processes as the load needs.
        self._idle: queue.LifoQueue[Sandbox] = queue.LifoQueue()
        for sandbox in reversed(self._all):
            self._idle.put(sandbox)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="rule")
        self._lock = threading.Lock()
        self._deaths_in_a_row = 0

    def __call__(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order.

        Raises:
            RunError: Process after process dies without a single score.
        """
        return list(self._threads.map(self._score, items))

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for sandbox in self._all:
            sandbox.close()

    def _score(self, item: Item) -> Score:
        sandbox = self._idle.get()
        try:
            score = sandbox.score(item)
        finally:
            self._idle.put(sandbox)
        self._count(score, item)
        return score

    def _count(self, score: Score, item: Item) -> None:
        died = isinstance(score, Failure) and score.kind in ("too slow", "crashed")
        with self._lock:
            self._deaths_in_a_row = self._deaths_in_a_row + 1 if died else 0
            if self._deaths_in_a_row < MAX_DEATHS_IN_A_ROW:
                return
        assert isinstance(score, Failure)
        raise RunError(
            f"preference.rule: {MAX_DEATHS_IN_A_ROW} answers in a row got no reward; the last, of prompt {item.prompt_id}: "
            f"{score.message}. Look at the rule, and at its timeoutSeconds"
        )
