"""Sandboxes: processes that run a rule's code, with a time limit for each item.

A process that takes too long is killed, and the next item gets a new one: no code in there, however wild, stops the trainer.
Of the trainer's environment it has what programs need, and no token or key.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from spinrun_api.redaction import redacted_text
from spinrun_api.spec import Rule
from spinrun_worker.errors import ConfigurationError, RunError
from spinrun_worker.rewards.score import Failure, Item, Score

STARTUP_SECONDS = 300.0
"""Time limit for the imports of a sandbox; the user's module may load a model."""

MAX_DEATHS_IN_A_ROW = 64
"""Processes lost in a row without a single score, after which something other than the answers must be wrong."""

PASSED_PREFIX = "SPINRUN_RULE_"
"""Prefix of the variables that users pass to their own rules."""
_EVERY_PROGRAM = """PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_ALL LC_CTYPE LC_NUMERIC LC_TIME LC_COLLATE LC_MESSAGES TZ
TMPDIR LD_LIBRARY_PATH VIRTUAL_ENV CONDA_PREFIX XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME"""
_PYTHON = """PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONHASHSEED PYTHONUTF8 PYTHONIOENCODING PYTHONUNBUFFERED
PYTHONWARNINGS PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONFAULTHANDLER PYTHONNOUSERSITE PYTHONUSERBASE"""
_COMPUTING = """OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS NUMEXPR_NUM_THREADS TOKENIZERS_PARALLELISM CUDA_HOME
CUDA_PATH CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES"""
_MODELS_AND_DATA = """HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE HF_MODULES_CACHE HF_HUB_OFFLINE HF_ENDPOINT HF_DATASETS_OFFLINE
TRANSFORMERS_OFFLINE TORCH_HOME TRITON_CACHE_DIR NLTK_DATA"""
_NETWORK = """HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy SSL_CERT_FILE SSL_CERT_DIR
REQUESTS_CA_BUNDLE CURL_CA_BUNDLE"""
PASSED = frozenset(" ".join((_EVERY_PROGRAM, _PYTHON, _COMPUTING, _MODELS_AND_DATA, _NETWORK)).split())
"""Variables of the trainer's environment that a rule's process gets too."""


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a rule's process gets of the trainer's environment: neither tokens nor keys, and no proxy with a password."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PASSED_PREFIX) or (name in PASSED and redacted_text(value) == value)
    }


class Sandbox:
    """One process that runs a rule, started when it is needed. Not for use by two threads at once."""

    def __init__(self, rule: Rule) -> None:
        """Prepare a sandbox, and start nothing yet. rule: of the kinds math, choice, regex and python."""
        self._timeout_seconds = rule.timeout_seconds
        # As JSON, because a pattern may hold what an argument cannot.
        document = json.dumps(rule.to_document())
        self._command = [sys.executable, "-m", "spinrun_worker.rewards.sandbox_process", "--rule", document]
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
                env=passed_environment(os.environ),
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
            raise ConfigurationError(reply["error"])

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

    def __init__(self, rule: Rule, *, processes: int) -> None:
        """Start one sandbox, to learn now whether the rule can be used; the others start when they are needed.

        Args:
            rule: As for `Sandbox`.
            processes: Sandboxes at most.

        Raises:
            ConfigurationError: The rule cannot be used.
            RunError: The first process dies or does not get ready.
        """
        self._all = [Sandbox(rule) for _ in range(processes)]
        self._all[0].start()
        # Last in, first out: as few processes as the load needs.
        self._idle: queue.LifoQueue[Sandbox] = queue.LifoQueue()
        for sandbox in reversed(self._all):
            self._idle.put(sandbox)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="rule")
        self._lock = threading.Lock()
        # A pattern can be too slow for whatever a model says: that is no reason to try again with another process.
        self._deaths = ("crashed",) if rule.kind == "regex" else ("too slow", "crashed")
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
        died = isinstance(score, Failure) and score.kind in self._deaths
        with self._lock:
            self._deaths_in_a_row = self._deaths_in_a_row + 1 if died else 0
            if self._deaths_in_a_row < MAX_DEATHS_IN_A_ROW:
                return
        assert isinstance(score, Failure)
        raise RunError(
            f"preference.rule: {MAX_DEATHS_IN_A_ROW} answers in a row got no reward; the last, of prompt {item.prompt_id}: "
            f"{score.message}. Look at the rule, and at its timeoutSeconds"
        )
