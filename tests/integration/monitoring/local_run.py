"""A real `spinrun local` of a tiny model, and where Prometheus finds its processes."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from integration.monitoring.prometheus import Target
from spinrun_kube import names
from spinrun_worker.ledger import read_metrics
from support.documents import letters_run

NAMESPACE, RUN = "local", "tiny"
START_SECONDS, STOP_SECONDS = 600, 120
LABELS = {
    "namespace": NAMESPACE,
    **{re.sub(r"\W", "_", label): value for label, value in {names.RUN_LABEL: RUN, names.ATTEMPT_LABEL: "1"}.items()},
}


def document(model: Path) -> dict[str, Any]:
    """A run that goes on until it is stopped, in windows of about a second."""
    return letters_run(
        RUN,
        model={"source": str(model)},
        data={
            "prompts": {"source": "arithmetic"},
            "evaluation": {"source": "arithmetic", "split": "test", "limit": 32},
            "maxPromptTokens": 128,
        },
        # So small that the rule is not learned: a model whose answers all follow it has no pairs left, and its run ends.
        trainer={"promptsPerStep": 16, "learningRate": 1e-7, "checkpointEverySteps": 2},
        duration={"windows": 1000},
    )


class LocalRun:
    """A `spinrun local` in a process of its own."""

    def __init__(self, process: psutil.Popen, folder: Path, log: Path) -> None:
        self._process = process
        self._folder = folder
        self._log = log

    def windows_done(self) -> int:
        """How many windows the ledger's figures tell of."""
        return sum(line.event == "window" for line in read_metrics(self._folder / "ledger" / "metrics.jsonl"))

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait; fail when the run ends meanwhile, or it takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"{what}: {self._log.read_text()}"
            time.sleep(0.2)

    def targets(self) -> list[Target]:
        """Its pages of metrics, with the labels that the run's PodMonitor gives to the pods of a cluster."""
        pods = {"agent-0": f"{RUN}-rollout-0", "trainer": f"{RUN}-trainer-1-0"}
        logs = {name: self._folder / "logs" / f"{name}.log" for name in pods}
        self.until("trainer and agent are started", lambda: all(map(_port, logs.values())))
        return [Target(_port(logs[name]), {**LABELS, "pod": pod}) for name, pod in pods.items()]


def _port(log: Path) -> int:
    """Where a process listens, by the command that its log begins each of its lives with; 0 before the first."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return int((re.findall(r"^--- .* --port (\d+)", text, re.MULTILINE) or [0])[-1])


@contextmanager
def local_run(model: Path, folder: Path) -> Generator[LocalRun]:
    """A run that is stopped when the block ends."""
    file, log = folder / "run.yaml", folder / "output.log"
    file.write_text(yaml.safe_dump(document(model)))
    command = [sys.executable, "-m", "spinrun_cli.main", "local", str(file), "--output", str(folder / "run")]
    with log.open("ab") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield LocalRun(process, folder / "run", log)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()
