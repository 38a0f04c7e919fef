"""A disk that is full, wherever `spinrun` writes: one sentence with the file and a remedy, and no process that stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spinrun_cli.errors import InvalidInputError
from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.report import write_report
from support.small_disk import SmallDisk, small_disk
from unit.cli.local.test_run import Command, until

FULL = "No space left on device. Free space on the volume or enlarge it; then continue with --resume"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "4m") as disk:
        yield disk


@pytest.fixture
def command(tmp_path: Path, run_file: Path, disk: SmallDisk) -> Iterator[Command]:
    """`spinrun local` with its folder on the small disk."""
    command = Command(tmp_path, run_file)
    command.output = disk.folder / "run"
    command.command[command.command.index("--output") + 1] = str(command.output)
    yield command
    command.close()


def test_full_before_the_start(command: Command, disk: SmallDisk) -> None:
    disk.fill()

    result = command.run()

    assert result.returncode == 1
    assert result.stderr == f"error: Cannot write {command.output}: {FULL}\n"


@pytest.mark.parametrize("victim", ["trainer", "vllm", "agent"])
def test_full_while_it_runs_ends_it_with_the_next_process_that_ends(command: Command, disk: SmallDisk, victim: str) -> None:
    process = command.start()
    command.wait_until_running()
    until(lambda: (command.output / "progress.json").exists())
    disk.fill()

    os.kill(pid_of(command, victim), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert f"The disk of {command.output}" in errors
    assert "Free space on the volume or enlarge it; then continue with --resume" in errors
    assert "Traceback" not in errors
    assert command.num_survivors() == 0


def pid_of(command: Command, role: str) -> int:
    """The process of a role: each life writes itself and its child."""
    roles = [line.split()[0] for line in (command.fakes / "lives").read_text().splitlines()]
    return next(pid for pid in pids(command) if role in roles and f" {role} " in command_line(pid))


def pids(command: Command) -> list[int]:
    return [int(pid) for pid in (command.fakes / "pids").read_text().split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def test_report_names_its_folder(finished_run: Path, disk: SmallDisk) -> None:
    disk.fill()
    data = load_run_data(finished_run)

    with pytest.raises(InvalidInputError, match=f"cannot write the report to {disk.folder}: No space left on device"):
        write_report(data, disk.folder)

    assert [path.name for path in disk.folder.iterdir()] == ["filler"], "no half of a page"


@pytest.mark.parametrize(
    "arguments", [["compare", "RUN"], ["report", "RUN", "--bundle"], ["validate", "RUN/run.yaml"], ["--help"]]
)
def test_output_into_a_full_file(finished_run: Path, arguments: list[str]) -> None:
    named = [each.replace("RUN", str(finished_run)) for each in arguments]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-m", "spinrun_cli.main", *named], stdout=full, stderr=subprocess.PIPE, text=True)

    assert ended.returncode == 1
    assert ended.stderr == "error: cannot write the output: No space left on device. Free space, or write it elsewhere\n"
