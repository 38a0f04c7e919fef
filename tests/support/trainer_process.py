"""Runs attempts of the real trainer in processes that are forked from one where torch is already imported: a second each."""

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import yaml

from spinrun_protocol.environment import ROLLOUTS, TERMINATION_LOG, TOKEN_FILE
from spinrun_protocol.ledger import MANIFEST

UID = "01234567-89ab-cdef-0123-456789abcdef"


def is_a_write(operation: str, path: Path) -> bool:
    """Whether a test may kill before this change of the ledger: one for each file that comes, and each directory that begins
    or ceases to count. Every single system call is the ledger's own tests' matter."""
    return operation in ("create", "replace") or (operation == "unlink" and path.name == MANIFEST)


def context() -> ForkServerContext:
    """A forkserver that has imported the trainer."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["spinrun_worker.trainer.build"])
    return forkserver


@dataclass(frozen=True)
class Attempts:
    """Attempts of one run."""

    folder: Path
    """For the run file, logs and termination messages."""

    agent: str
    """URL of the agents."""

    token_file: Path
    document: dict[str, Any]
    forkserver: ForkServerContext = field(default_factory=context)
    environment: dict[str, str] = field(default_factory=dict)
    """Beside what every trainer is given. Not that of this process: the forkserver has the one in which it was started."""

    def start(
        self, ledger: Path, *, attempt: int = 1, kill_at: int | None = None, list_to: Path | None = None, **spec: Any
    ) -> ForkServerProcess:
        """Start an attempt. kill_at: SIGKILL before this change of the ledger, from 1. list_to: file for a line about each."""
        run_file = self.folder / f"run-{attempt}.yaml"
        run_file.write_text(yaml.safe_dump({**self.document, "spec": {**self.document["spec"], **spec}}))
        environment = {
            ROLLOUTS: self.agent,
            TOKEN_FILE: str(self.token_file),
            TERMINATION_LOG: str(self.termination_message(attempt)),
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        arguments = [
            "--run",
            str(run_file),
            "--ledger",
            str(ledger),
            "--attempt",
            str(attempt),
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ]
        self.termination_message(attempt).unlink(missing_ok=True)
        process = self.forkserver.Process(target=_trainer, args=(arguments, environment, self.log(attempt), kill_at, list_to))
        process.start()
        return process

    def run(self, ledger: Path, *, attempt: int = 1, timeout: float = 120, **options: Any) -> int:
        """Run an attempt to its end; returns its exit code, minus the signal's number where one ended it."""
        process = self.start(ledger, attempt=attempt, **options)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"attempt {attempt} did not end in {timeout} s:\n{self.log(attempt).read_text()}")
        return process.exitcode

    def log(self, attempt: int) -> Path:
        return self.folder / f"trainer-{attempt}.log"

    def termination_message(self, attempt: int) -> Path:
        return self.folder / f"termination-{attempt}.json"


def _trainer(arguments: list[str], environment: dict[str, str], log: Path, kill_at: int | None, list_to: Path | None) -> None:
    import torch

    from spinrun_worker.ledger import durable
    from spinrun_worker.trainer.__main__ import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    changes: list[str] = []

    def observe(operation: str, path: Path) -> None:
        if not is_a_write(operation, path):
            return
        changes.append(f"{operation} {path}")
        if len(changes) == kill_at:
            print(f"killed before {changes[-1]}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    durable.observe = observe
    code = main(arguments)
    if list_to is not None:
        list_to.write_text("\n".join(changes))
    sys.exit(code)
