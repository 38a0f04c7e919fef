"""What `make fuzz` has in common: a line at its end for each surface with the number of inputs that were tried.

They also go to the file that SPINRUN_FUZZED names, in one line for each seed, from which CI tells of them.
"""

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from fuzz.strategies import tried


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        # Properties travel from the processes of pytest-xdist.
        report.user_properties.append(("tried", tried[item.name.partition("[")[0]]))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how many inputs each surface was given."""
    if hasattr(terminalreporter.config, "workerinput"):
        return  # a process of pytest-xdist
    inputs, failures = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            surface = Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_")
            inputs[surface] += dict(report.user_properties).get("tried", 0)
            failures[surface] += outcome == "failed"
    terminalreporter.section("inputs tried")
    for surface, number in sorted(inputs.items()):
        terminalreporter.write_line(f"{surface:<10}{number:>7}{f'  {failures[surface]} FAILED' if failures[surface] else ''}")
    if path := os.environ.get("SPINRUN_FUZZED"):
        seed = terminalreporter.config.getoption("--hypothesis-seed")
        counts = ", ".join(f"{surface} {number}" for surface, number in sorted(inputs.items()))
        with Path(path).open("a") as file:
            file.write(f"seed {seed}: {counts}{', FAILED' if failures.total() else ''}\n")
