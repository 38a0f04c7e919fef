"""Real processes for tests of the rollout: vLLM on CPUs, and an agent beside it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from spinrun_api.documents import parse_run
from spinrun_api.run import SpinRun
from spinrun_protocol import commands
from spinrun_protocol.environment import TOKEN_FILE
from support.ports import free_port
from support.rollouts import TOKEN, UID

START_SECONDS = 600


def tiny_run(model: Path, *, lora: dict[str, Any] | None = None, **rollout: Any) -> SpinRun:
    """A run of a tiny model, or of adapters beside it: prompts of up to 64 tokens and answers of up to 64."""
    return parse_run(
        {
            "apiVersion": "spinrun.dev/v1alpha1",
            "kind": "SpinRun",
            "metadata": {"name": "tiny", "namespace": "local", "uid": UID},
            "spec": {
                "model": {"source": str(model)},
                "data": {"prompts": {"source": "arithmetic"}, "maxPromptTokens": 64},
                "preference": {"rule": {"kind": "lastNumber"}},
                "rollout": {"maxTokens": 64} | rollout,
                "trainer": {} if lora is None else {"lora": lora},
            },
        }
    )


class ServerProcess:
    """A process of its own session that serves HTTP on a port, and its log file."""

    def __init__(self, process: commands.Process, *, port: int, health: str, log: Path, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._health = health
        # `python` is the one that runs the tests, not whichever comes first in PATH.
        self._command = [sys.executable, *process.command[1:]]
        self._environment = os.environ | process.environment | environment
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, without waiting for it to be up."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def wait_until_up(self, seconds: float = START_SECONDS) -> None:
        self._wait(self._is_up, seconds)

    def kill(self) -> None:
        """SIGKILL to the whole group, as when a container is killed."""
        assert self._child is not None
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def terminate(self) -> None:
        """SIGTERM, as when a pod is deleted."""
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        """The exit code."""
        assert self._child is not None
        return self._child.wait(seconds)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left of the group soon after."""
        if self._child is None or self._child.poll() is not None:
            return
        self.terminate()
        try:
            self.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _is_up(self) -> bool:
        try:
            return httpx.get(self.url + self._health, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        assert self._child is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._child.poll() is None, f"ended with {self._child.returncode}:\n{self._termination_message()}"
            assert time.monotonic() < deadline, f"not up within {seconds} s:\n{self._termination_message()}"
            time.sleep(0.1)

    def _termination_message(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-40:])


class VllmServer(ServerProcess):
    """A real vLLM in float32, started as SpinRun starts it."""

    def __init__(self, run: SpinRun, log: Path) -> None:
        port = free_port()
        process = commands.vllm(run, accelerator="cpu", dtype="float32", port=port)
        super().__init__(process, port=port, health="/health", log=log, environment={"HF_HUB_OFFLINE": "1"})


@contextmanager
def running_vllm(run: SpinRun, log: Path) -> Generator[VllmServer]:
    """A vLLM for a run, up while the block runs."""
    server = VllmServer(run, log)
    server.start()
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


class AgentProcess(ServerProcess):
    """An agent beside a vLLM. Its folder holds the run file, the token, its scratch space and its log."""

    def __init__(self, run: SpinRun, *, ledger: Path, vllm: str, folder: Path, options: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(run.model_dump_json(by_alias=True, exclude_none=True))
        (folder / "token").write_text(f"{TOKEN}\n")
        port = free_port()
        process = commands.agent(
            run_file=str(folder / "run.json"),
            ledger=str(ledger),
            scratch=str(folder / "scratch"),
            port=port,
            vllm_port=int(vllm.rpartition(":")[2]),
            host="127.0.0.1",
        )
        process.command.extend(options)
        environment = {TOKEN_FILE: str(folder / "token")}
        super().__init__(process, port=port, health="/healthz", log=folder / "log", environment=environment)
        self.scratch = folder / "scratch"

    def forget(self) -> None:
        """Lose the scratch space, as when the pod is replaced."""
        shutil.rmtree(self.scratch, ignore_errors=True)
