"""The scripts of the test cluster run before there is a virtual environment."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.mark.parametrize("script", ["cluster", "control-plane"])
def test_a_script_needs_the_standard_library_only(script: str, tmp_path: Path) -> None:
    # -S: without the packages of this environment.
    done = subprocess.run([sys.executable, "-S", TOOLS / script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"tools/{script} up --state DIR" in done.stdout


@pytest.mark.parametrize("script", ["cluster", "control-plane"])
def test_status_of_a_folder_in_which_nothing_runs_says_so(script: str, tmp_path: Path) -> None:
    status = subprocess.run([TOOLS / script, "status", "--state", tmp_path], capture_output=True, text=True)
    assert status.returncode == 1
    assert {line.split(maxsplit=1)[1] for line in status.stdout.splitlines()} == {"not running"}
