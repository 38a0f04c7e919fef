"""Judging in processes of their own, with a time limit for each item.

A process that takes too long is killed and the next item gets a new one: no code there, however wild, stops the trainer.
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
from spinrun_worker.rewards.verdict import Failure, Item, Verdict

STARTUP_SECONDS = 300.0
"""Longest time for the imports of a judging process; the user's module may load a model."""

MAX_DEATHS_IN_A_ROW = 64
"""Processes lost one after the other without a single verdict, after which something else than the answers must be wrong."""


class JudgeProcess:
    """One judging process, started when it is needed. Not for use by two threads at once."""

    def __init__(self, *, timeout_seconds: float, entry_point: str | None = None) -> None:
        """timeout_seconds: longest time for one item. entry_point: module:function of the user; None: math-verify."""
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
        """Start the process unless it runs.

        Raises ConfigurationError when it says that it cannot judge, RunError when it dies or does not get ready.
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
            raise RunError(f"the judging process was not ready after {STARTUP_SECONDS:g} s") from error
        except OSError as error:
            raise RunError(f"the judging process died as it started: {self._ending()}") from error
        if "error" in reply:
            self.close()
            raise ConfigurationError(f"preference.rule: {reply['error']}")

    def judge(self, item: Item) -> Verdict:
        """The reward of one item, or why it has none, within the time limit. Raises like start when it has to start."""
        self.start()
        deadline = time.monotonic() + self._timeout_seconds
        try:
            self._send(item, deadline)
            reply = self._receive(deadline)
        except TimeoutError:
            self.close()
            return Failure("too slow", f"no verdict in {self._timeout_seconds:g} s")
        except OSError:
            return Failure("crashed", f"the judging process died: {self._ending()}")
        return Failure(*reply["failure"]) if "failure" in reply else float(reply["reward"])

    def close(self) -> None:
        """Kill the process, and all that it started."""
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
                raise ConnectionResetError("closed by the judging process")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _ending(self) -> str:
        """How a process ended that closed its side; it is given a moment to be gone, and then it is."""
        process = self._process
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        self.close()
        code = process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class ProcessJudge:
    """Judges many items by a few processes at once."""

    def __init__(self, *, processes: int, timeout_seconds: float, entry_point: str | None = None) -> None:
        """Start one process, to learn now whether the rule can be used; the others start when they are needed.

        Raises ConfigurationError when it cannot be used, RunError when the process dies or does not get ready.
        """
        self._all = [JudgeProcess(timeout_seconds=timeout_seconds, entry_point=entry_point) for _ in range(processes)]
        self._all[0].start()
        # Last in, first out: as few processes as the load needs.
        self._idle: queue.LifoQueue[JudgeProcess] = queue.LifoQueue()
        for process in reversed(self._all):
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="judge")
        self._lock = threading.Lock()
        self._deaths_in_a_row = 0

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item. Raises RunError when process after process dies without any verdict."""
        return list(self._threads.map(self._judge, items))

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.close()

    def _judge(self, item: Item) -> Verdict:
        process = self._idle.get()
        try:
            verdict = process.judge(item)
        finally:
            self._idle.put(process)
        self._count(verdict, item)
        return verdict

    def _count(self, verdict: Verdict, item: Item) -> None:
        died = isinstance(verdict, Failure) and verdict.kind in ("too slow", "crashed")
        with self._lock:
            self._deaths_in_a_row = self._deaths_in_a_row + 1 if died else 0
            if self._deaths_in_a_row < MAX_DEATHS_IN_A_ROW:
                return
        assert isinstance(verdict, Failure)
        raise RunError(
            f"preference.rule: {MAX_DEATHS_IN_A_ROW} answers in a row got no verdict; the last, of prompt {item.prompt_id}: "
            f"{verdict.message}. Look at the rule, and at its timeoutSeconds"
        )
