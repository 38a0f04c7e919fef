"""What the templates make of the values, against snapshots: the default's whole, the others as differences from it.

UPDATE_SNAPSHOTS=1 .venv/bin/pytest tests/unit/chart/test_templates.py     # rewrites the snapshots; read their diff
"""

import difflib
import os
import re
from pathlib import Path

import pytest

from unit.chart.helm import CHART, HelmError, helm, template

pytestmark = pytest.mark.cluster

SNAPSHOTS = Path(__file__).parent / "snapshots"
CASES = {file.stem: file for file in sorted((Path(__file__).parent / "cases").glob("*.yaml"))}


def readable(manifests: str) -> str:
    """Manifests without what is long and made: CRD, dashboards and alerts, whose files test_chart_files.py compares."""
    made = "CustomResourceDefinition|ConfigMap|PrometheusRule"
    return re.sub(rf"(?s)(kind: (?:{made})\n.*?\n(?:spec|data):\n).*?\n(?=---|\Z)", r"\1  # and so on\n", manifests)


def difference(before: str, after: str) -> str:
    """What is removed (-) and added (+), with two lines around it."""
    return "\n".join(list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2))[2:]) + "\n"


def compare(name: str, text: str) -> None:
    """Compares with a snapshot, or writes it."""
    file = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.write_text(text)
    assert text == file.read_text(), f"see the head of {__file__} if this change is meant"


def test_default_values_make_the_snapshot() -> None:
    compare("default.yaml", readable(template()))


@pytest.mark.parametrize("case", CASES)
def test_other_values_make_the_snapshot(case: str) -> None:
    compare(f"{case}.diff", difference(readable(template()), readable(template("--values", CASES[case]))))


def test_every_case_has_its_snapshot_and_every_snapshot_its_case() -> None:
    assert {file.name for file in SNAPSHOTS.iterdir()} == {"default.yaml", *(f"{case}.diff" for case in CASES)}


@pytest.mark.parametrize("case", [None, *CASES])
def test_lint_finds_nothing(case: str | None) -> None:
    helm("lint", "--strict", CHART, *(["--values", CASES[case]] if case else []))


def test_kubernetes_that_is_too_old_is_refused() -> None:
    template("--kube-version", "1.30.3-gke.100")
    with pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.30"):
        template("--kube-version", "1.29.9")


def test_packaged_chart_holds_all_that_it_needs(tmp_path: Path) -> None:
    helm("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.iterdir()
    assert helm("template", "spinrun", package, "--namespace", "spinrun-system") == template()
