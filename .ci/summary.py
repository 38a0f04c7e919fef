"""What CI ends with: what it left out, hostile inputs, how long each part took, and the tests that passed only at the second try.

    summary.py RESULTS SECONDS

RESULTS has `parts` (lines of name, seconds, exit code), `left-out/` (files of lines), `fuzzed` (a line for each seed), and for
each target of tests TARGET.1.xml and, where tests failed, TARGET.2.xml, in JUnit's format. SECONDS is how long all of it took.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def failed_tests(report: Path) -> set[str]:
    """The tests of a report that failed, or that could not be set up or torn down."""
    cases = ElementTree.parse(report).iter("testcase")
    return {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }


def flaky_tests(results: Path) -> list[str]:
    """The tests that failed first and passed then, part by part."""
    found: list[str] = []
    for second in sorted(results.glob("*.2.xml")):
        target = second.name.removesuffix(".2.xml")
        first = results / f"{target}.1.xml"
        if first.exists():
            found += sorted(failed_tests(first) - failed_tests(second))
        elif not failed_tests(second):
            found.append(f"{target}: the first try ended without a report")
    return found


def summary(results: Path, seconds: int) -> str:
    """The lines to print."""
    lines = ["", "=== left out"]
    files = sorted(results.glob("left-out/*"))
    lines += [f"{file.name}: {line}" for file in files for line in file.read_text().splitlines()] or ["nothing"]
    fuzzed = results / "fuzzed"
    lines += ["", "=== hostile inputs tried", *(fuzzed.read_text().splitlines() if fuzzed.exists() else ["none"])]
    lines += ["", "=== seconds"]
    parts = [line.split() for line in (results / "parts").read_text().splitlines()] if (results / "parts").exists() else []
    lines += [f"{name:<12}{took:>6}{'' if code == '0' else f'  FAILED (exit code {code})'}" for name, took, code in parts]
    lines += [f"{'all':<12}{seconds:>6}"]
    flaky = flaky_tests(results)
    lines += ["", f"=== FLAKY: passed at the second try: {len(flaky)}", *flaky]
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]), int(sys.argv[2])), flush=True)
