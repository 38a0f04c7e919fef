"""What a session of pytest says of the tests that it skipped, and what CI makes of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_needs_something(number):
    pytest.skip("something is not installed")

@pytest.mark.skipif(True, reason="root may write everywhere")
def test_needs_a_user():
    pass

@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail():
    raise AssertionError
"""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A folder with tests and the project's conftest."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the folder's tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "SPINRUN_LEFT_OUT")}
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)


def test_a_session_ends_with_a_line_for_each_reason(session: Path) -> None:
    done = run(session, SPINRUN_LEFT_OUT=str(session / "out" / "file"))

    assert done.returncode == 0, done.stdout
    want = ["1 test: root may write everywhere", "3 tests: something is not installed"]
    assert (session / "out" / "file").read_text().splitlines() == want
    assert "\n".join(want) in done.stdout


def test_on_ci_a_skipped_test_fails_unless_its_reason_is_listed(session: Path) -> None:
    done = run(session, CI="true")

    assert done.returncode == 1
    assert "3 failed, 1 skipped, 1 xfailed" in done.stdout
    assert "skipped, and CI must not skip it: something is not installed" in done.stdout
