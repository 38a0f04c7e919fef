"""What CI's output ends with."""

import subprocess
import sys
from pathlib import Path

SUMMARY = Path(__file__).resolve().parents[3] / ".ci" / "summary.py"


def report(path: Path, **outcomes: str) -> None:
    """Writes a report in JUnit's format. outcomes: an element for each test that did not pass, else nothing."""
    cases = [
        f'<testcase classname="tests.unit.test_it" name="{name}">{f"<{outcome}/>" if outcome else ""}</testcase>'
        for name, outcome in outcomes.items()
    ]
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")


def summary(results: Path) -> str:
    """What is printed of a folder of results."""
    done = subprocess.run([sys.executable, SUMMARY, results, "100"], capture_output=True, text=True, check=True)
    return done.stdout


def test_only_tests_that_passed_at_the_second_try_are_flaky(tmp_path: Path) -> None:
    report(tmp_path / "test-units.1.xml", test_sound="", test_flaky="failure", test_broken="failure", test_setup="error")
    report(tmp_path / "test-units.2.xml", test_flaky="", test_broken="failure", test_setup="")
    report(tmp_path / "test-vllm.1.xml", test_sound="", test_skipped="skipped")

    *_, heading, first, second = summary(tmp_path).splitlines()

    assert heading == "=== FLAKY: passed at the second try: 2"
    assert (first, second) == ("tests/unit/test_it.py::test_flaky", "tests/unit/test_it.py::test_setup")


def test_a_first_try_that_ended_without_a_report_is_named(tmp_path: Path) -> None:
    report(tmp_path / "e2e.2.xml", test_sound="")
    assert summary(tmp_path).endswith("second try: 1\ne2e: the first try ended without a report\n")


def test_parts_have_their_seconds_and_what_was_left_out_its_reasons(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("lint 52 0\nunits 201 2\n")
    (tmp_path / "left-out").mkdir()
    (tmp_path / "left-out" / "test-units").write_text("1 test: root may write everywhere\n")

    said = summary(tmp_path)

    assert "lint            52\nunits          201  FAILED (exit code 2)\nall            100\n" in said
    assert "=== left out\ntest-units: 1 test: root may write everywhere\n" in said


def test_hostile_inputs_are_told_with_the_seed_that_repeats_them(tmp_path: Path) -> None:
    assert "=== hostile inputs tried\nnone\n" in summary(tmp_path)
    (tmp_path / "fuzzed").write_text("seed 1: agent 400, report 220\nseed 77: agent 400, report 3, FAILED\n")
    assert "=== hostile inputs tried\nseed 1: agent 400, report 220\nseed 77: agent 400, report 3, FAILED\n" in summary(tmp_path)


def test_a_ci_that_ended_before_its_first_part_has_a_summary_too(tmp_path: Path) -> None:
    assert summary(tmp_path).endswith("=== FLAKY: passed at the second try: 0\n")
