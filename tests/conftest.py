"""What a session of tests left out and why: a line for each reason at its end; on CI, where nothing may be left out, a failure.

The lines also go to the file that SPINRUN_LEFT_OUT names, from which `make test` and CI collect those of all their sessions.
"""

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

MAY_BE_SKIPPED_ON_CI = {
    "root may write everywhere": "nodes need root, and so CI has it; a full volume cannot be written to either, and is tested",
}
"""Reasons for which a test may be skipped on CI too, and why that loses nothing there."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI, makes a failure of a test that was skipped because something is missing that CI has to have."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = reason_of(report)
        if reason not in MAY_BE_SKIPPED_ON_CI:
            report.outcome = "failed"
            report.longrepr = f"skipped, and CI must not skip it: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints a line for each reason for which tests were skipped."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if not hasattr(report, "wasxfail")]
    lines = left_out([reason_of(report) for report in skipped])
    if lines:
        terminalreporter.section("left out")
        for line in lines:
            terminalreporter.write_line(line)
    if path := os.environ.get("SPINRUN_LEFT_OUT"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(f"{line}\n" for line in lines))


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped."""
    where = report.longrepr
    reason = where[2] if isinstance(where, tuple) else str(where)
    return reason.removeprefix("Skipped: ")


def left_out(reasons: list[str]) -> list[str]:
    """A line for each reason, with the number of tests that were skipped for it."""
    return [f"{count} {'test' if count == 1 else 'tests'}: {reason}" for reason, count in sorted(Counter(reasons).items())]
