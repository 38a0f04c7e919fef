"""`spinrun local` as a user meets it: a command with fake children, signals, and folders that are in use."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.processes import is_running
from unit.cli.local import fakes

SPINRUN = [sys.executable, fakes.__file__]


class Command:
    """`spinrun local` in a process of its own."""

    def __init__(self, folder: Path, run_file: Path) -> None:
        self.fakes = folder / "fakes"
        self.output = folder / "run"
        self.command = [*SPINRUN, str(self.fakes), "local", str(run_file), "--output", str(self.output)]
        self.command += ["--set", "spec.model.dtype=float32"]  # else the processor would be measured
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **scripts: str) -> "subprocess.Popen[str]":
        fakes.write_scripts(self.fakes, scripts)
        process = subprocess.Popen(
            [*self.command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the test's own terminal is not its
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, **scripts: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments, **scripts)
        output, errors = process.communicate(timeout=90)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def wait_until_running(self) -> None:
        """All three children have started, and the trainer has said so."""
        until(lambda: (self.fakes / "lives").exists() and len((self.fakes / "lives").read_text().splitlines()) >= 3)

    def num_survivors(self) -> int:
        return sum(is_running(int(pid)) for pid in (self.fakes / "pids").read_text().split())

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def command(tmp_path: Path, run_file: Path) -> Iterator[Command]:
    command = Command(tmp_path, run_file)
    yield command
    command.close()


def test_lengths_that_the_model_makes_shrink_are_said_and_written_down(command: Command, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')

    done = command.run(trainer="complete")

    assert done.returncode == 0, done.stderr
    assert "INFO the model reads 512 tokens: data.maxPromptTokens is 256 and rollout.maxTokens 256\n" in done.stdout
    assert "maxPromptTokens: 256" in (command.output / "run.yaml").read_text()


def test_lengths_beyond_the_model_end_with_2_before_anything_starts(command: Command, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')

    done = command.run("--set", "spec.rollout.maxTokens=512", trainer="complete")

    assert done.returncode == 2
    assert "spec.data.maxPromptTokens: 1 and spec.rollout.maxTokens 512 make 513 tokens, but the model reads 512" in done.stderr
    assert not (command.fakes / "lives").exists()
    assert not command.output.exists()


def test_a_complete_run_says_so_and_leaves_a_report(command: Command) -> None:
    result = command.run(trainer="complete")

    assert result.returncode == 0, result.stderr
    assert "complete" in result.stdout
    assert f"report: {command.output}/report.html" in result.stdout
    assert (command.output / "report.html").exists()
    assert (command.output / "curves.png").exists()
    assert (command.output / "token").stat().st_mode & 0o777 == 0o600
    assert not (command.output / "scratch").exists()
    assert command.num_survivors() == 0


@pytest.mark.parametrize(("number", "want"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_stops_every_process_and_leaves_a_run_that_can_be_resumed(
    command: Command, number: signal.Signals, want: int
) -> None:
    process = command.start()
    command.wait_until_running()

    process.send_signal(number)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == want
    assert "to continue, add --resume" in errors
    assert command.num_survivors() == 0
    assert json.loads((command.output / "last-words.json").read_text())["result"] == "Preempted"
    assert command.run("--resume", trainer="complete").returncode == 0


def test_a_second_ctrl_c_stops_at_once(command: Command) -> None:
    process = command.start(trainer="stubborn")
    command.wait_until_running()
    until(lambda: "trainer" in (command.fakes / "lives").read_text())

    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # the trainer, which ignores it, has a minute
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert process.returncode == 130
    assert command.num_survivors() == 0


def test_no_process_survives_when_spinrun_itself_is_killed(command: Command) -> None:
    process = command.start(trainer="stubborn", vllm="stubborn")
    command.wait_until_running()

    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    until(lambda: command.num_survivors() == 0, seconds=20)


def test_no_process_survives_when_a_guard_is_killed(command: Command) -> None:
    process = command.start()
    command.wait_until_running()
    guards = [pid for pid in children_of(process.pid) if b"vllm" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    os.kill(guards[0], signal.SIGKILL)
    until(lambda: (command.fakes / "lives").read_text().count("vllm") == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)

    assert command.num_survivors() == 0


def children_of(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_a_second_start_on_the_same_folder_is_refused_and_names_the_first(command: Command) -> None:
    first = command.start()
    command.wait_until_running()

    second = command.run("--resume")

    assert second.returncode == 1
    assert f"another `spinrun local` (pid {first.pid}) works on {command.output}" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    assert first.returncode == 130


def test_a_folder_with_a_run_needs_resume_or_again(command: Command) -> None:
    assert command.run(trainer="complete").returncode == 0

    refused = command.run(trainer="complete")
    assert refused.returncode == 2
    assert "use --resume to continue it, --again to start from scratch" in refused.stderr

    changed = command.run("--resume", "--set", "spec.method.beta=0.5", trainer="complete")
    assert changed.returncode == 2
    assert "spec.method.beta: 0.1 there, 0.5 here" in changed.stderr

    lives = (command.fakes / "lives").read_text()
    finished = command.run("--resume", trainer="complete")
    assert finished.returncode == 0
    assert "nothing to do but its report" in finished.stdout
    assert (command.fakes / "lives").read_text() == lives

    longer = command.run("--resume", "--set", "spec.duration.windows=9", trainer="complete")
    assert longer.returncode == 0
    assert (command.fakes / "lives").read_text() != lives

    again = command.run("--again", trainer="complete")
    assert again.returncode == 0
    assert (command.output.with_name("run.1") / "run.yaml").exists()


def test_a_failing_run_exits_with_1_and_shows_the_trainers_log(command: Command) -> None:
    result = command.run("--set", "spec.lifecycle.backoffLimit=0", trainer="die 7")

    assert result.returncode == 1
    assert "beta is too large" in result.stderr
    assert "  | trainer says die" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_one_machine_does_not_use_is_said_in_one_line(command: Command) -> None:
    sets = ("--set", "spec.trainer.nodes=4", "--set", "spec.storage.size=9Gi", "--set", "spec.rollout.image=vllm:1")
    result = command.run(*sets, trainer="complete")

    assert "INFO not used on one machine: spec.storage, spec.rollout.image, spec.trainer.nodes" in result.stdout
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        pytest.param(["--set", "spec.model.source=/nowhere"], "spec.model.source: /nowhere is not a folder", id="no model"),
        pytest.param(["--set", "spec.method.bta=1"], "spec.method.bta: unknown field (did you mean beta?)", id="unknown field"),
        pytest.param(["--set", "spec.method.beta"], "must look like spec.duration.windows=3", id="no value"),
        pytest.param(
            ["--set", "spec.data.prompts={source: /no/such.jsonl, answerColumn: a}"],
            "spec.data.prompts.source: /no/such.jsonl is not a file",
            id="no data",
        ),
        pytest.param(["--output", "/proc/run"], "cannot write to /proc/run", id="output not writable"),
    ],
)
def test_bad_input_is_one_message_and_starts_nothing(command: Command, arguments: list[str], want: str) -> None:
    result = command.run(*arguments)

    assert result.returncode == 2
    assert want in result.stderr
    assert "Traceback" not in result.stderr
    assert not (command.fakes / "lives").exists()
