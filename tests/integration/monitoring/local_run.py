"""A real `spinrun local` of a tiny model, and where Prometheus finds its processes."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from integration.monitoring.prometheus import Target
from spinrun_kube import names
from spinrun_protocol.ledger import MetricsLine
from spinrun_worker.ledger import read_metrics
from support.documents import letters_run

NAMESPACE, RUN = "local", "tiny"
START_SECONDS, STOP_SECONDS = 600, 120
LABELS = {
    "namespace": NAMESPACE,
    **{re.sub(r"\W", "_", label): value for label, value in {names.RUN_LABEL: RUN, names.ATTEMPT_LABEL: "1"}.items()},
}


def document(model: Path) -> dict[str, Any]:
    """A run that lasts until it is stopped, in windows of about a second."""
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
    """A `spinrun local` in a process of its own, which can be ended and started again."""

    process: psutil.Popen
    """The last that was started."""

    def __init__(self, model: Path, place: Path) -> None:
        """Prepares a run of a model.

        Args:
            model: Folder of the model.
            place: Folder for the run's file, its folder and what the command prints.
        """
        self.folder = place / "run"
        self.ledger = self.folder / "ledger"
        self._file = place / "run.yaml"
        self._log = place / "output.log"
        self._file.write_text(yaml.safe_dump(document(model)))

    def start(self, *arguments: str) -> None:
        """Starts the command with further arguments."""
        command = [sys.executable, "-m", "spinrun_cli.main", "local", str(self._file), "--output", str(self.folder), *arguments]
        with self._log.open("ab") as output:
            self.process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def stop(self) -> None:
        """Ends it in good order where it still runs, so that its children end too."""
        with suppress(psutil.NoSuchProcess):
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def descendants(self) -> list[psutil.Process]:
        """Its children, and theirs."""
        return self.process.children(recursive=True)

    def metrics(self) -> list[MetricsLine]:
        """What the ledger's figures tell."""
        return read_metrics(self.ledger / "metrics.jsonl")

    def windows_done(self) -> int:
        """How many windows these tell of."""
        return sum(line.event == "window" for line in self.metrics())

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits; fails when the run ends meanwhile, or it takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, f"{what}: {self.output}"
            time.sleep(0.2)

    def targets(self) -> list[Target]:
        """Its pages of metrics, with the labels that the run's PodMonitor gives to the pods of a cluster."""
        pods = {"agent-0": f"{RUN}-rollout-0", "trainer": f"{RUN}-trainer-1-0"}
        logs = {name: self.folder / "logs" / f"{name}.log" for name in pods}
        self.until("trainer and agent are started", lambda: all(map(_port, logs.values())))
        return [Target(_port(logs[name]), {**LABELS, "pod": pod}) for name, pod in pods.items()]


def _port(log: Path) -> int:
    """Where a process listens, by the command that its log begins each of its lives with; 0 before the first."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return int((re.findall(r"^--- .* --port (\d+)", text, re.MULTILINE) or [0])[-1])
