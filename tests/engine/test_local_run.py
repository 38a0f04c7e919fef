"""`spinrun local` with everything real: vLLM, agents, the trainer, a tiny model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from spinrun_protocol.commands import CPU_SERVER
from spinrun_worker.ledger import read_metrics, verify_tree
from support.documents import letters_run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

START_SECONDS = 600


@pytest.fixture
def run_file(base_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    trainer = {"promptsPerStep": 4, "learningRate": 1e-4}
    document = letters_run("tiny", model={"source": str(base_model)}, trainer=trainer, duration={"windows": 1000})
    path.write_text(yaml.safe_dump(document))
    return path


class Command:
    """A `spinrun local` in a process of its own."""

    def __init__(self, *arguments: str, log: Path) -> None:
        with log.open("ab") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "spinrun_cli.main", "local", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    def descendants(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)

    def wait_until(self, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.2)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        started.append(Command(*arguments, log=tmp_path / "output.log"))
        return started[-1]

    yield start
    for command in started:
        with suppress(psutil.NoSuchProcess):
            command.process.kill()
        command.process.wait()


def test_a_run_that_is_stopped_goes_on_with_two_rollouts_and_survives_the_death_of_one(
    run_file: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    folder = tmp_path / "run"
    metrics = folder / "ledger" / "metrics.jsonl"

    def windows_done() -> int:
        return sum(line.event == "window" for line in read_metrics(metrics))

    first = start(str(run_file), "--output", str(folder))
    first.wait_until(lambda: windows_done() >= 2)
    children = first.descendants()
    assert any(map(is_vllm, children))
    stopped = time.monotonic()
    first.process.send_signal(signal.SIGINT)
    first.process.wait(60)

    assert first.process.returncode == 130, first.output
    assert time.monotonic() - stopped < 45
    assert survivors(children) == []
    assert [finding for finding in verify_tree(folder / "ledger") if finding.state != "committed"] == []
    done = windows_done()
    assert 2 <= done < 1000

    wanted = done + 12
    sets = ["--set", f"spec.duration.windows={wanted}", "--set", "spec.rollout.replicas=2"]
    second = start(str(run_file), "--output", str(folder), "--resume", *sets)
    second.wait_until(lambda: windows_done() > done)
    children = second.descendants()
    victims = [child for child in children if is_vllm(child)]
    assert len(victims) == 2
    os.kill(victims[0].pid, signal.SIGKILL)
    second.process.wait(START_SECONDS)

    assert second.process.returncode == 0, second.output
    assert "complete: held-out accuracy" in second.output
    assert (folder / "report.html").exists()
    lines = read_metrics(metrics)
    assert [line.version for line in lines if line.event == "evaluation"] == list(range(wanted + 1))
    assert [line.step for line in lines if line.event == "window"] == list(range(2, 2 * wanted + 1, 2))
    assert {line.attempt for line in lines} == {1, 2}
    assert survivors(children) == []


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def is_vllm(process: psutil.Process) -> bool:
    return CPU_SERVER in process.cmdline() and "child_process.py" not in " ".join(process.cmdline())
