"""What the chart has from elsewhere, and the shape of its values; Helm is not needed."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from spinrun_protocol.commands import TRAINER_PORT
from unit.chart.helm import CHART, HANDED_DOWN, ROOT, Json


def test_crd_readme_and_schema_are_what_generate_writes() -> None:
    check = subprocess.run([sys.executable, ROOT / "charts" / "generate.py", "--check"], capture_output=True, text=True)
    assert (check.returncode, check.stderr) == (0, "")


def test_stale_copies_are_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "charts", tmp_path / "charts")
    shutil.copytree(ROOT / "crds", tmp_path / "crds", ignore=shutil.ignore_patterns("spinrun_api"))
    values, crd = tmp_path / "charts/spinrun/values.yaml", tmp_path / "crds/spinrun.dev_spinruns.yaml"
    values.write_text(values.read_text().replace("# Make it.", "# Make it, or not."))
    crd.write_text(crd.read_text().replace("singular: spinrun", "singular: run"))
    script = tmp_path / "charts" / "generate.py"
    check = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert check.returncode == 1
    assert [Path(line.split()[0]).name for line in check.stderr.splitlines()] == ["README.md", "values.schema.json", crd.name]
    subprocess.run([sys.executable, script], check=True)
    subprocess.run([sys.executable, script, "--check"], check=True)


def test_chart_and_operator_have_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])


def properties(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every property of a schema with its path."""
    for name, entry in schema.get("properties", {}).items():
        yield f"{path}{name}", entry
        yield from properties(entry, f"{path}{name}.")


def paths(values: Json, blocks: set[str], path: str = "") -> Iterator[str]:
    """The path of every value, down into the blocks."""
    for name, value in values.items():
        yield path + name
        if path + name in blocks:
            yield from paths(value, blocks, f"{path}{name}.")


def schema_of_values() -> Json:
    return json.loads((CHART / "values.schema.json").read_text())


def test_schema_describes_every_value_and_knows_no_other() -> None:
    found = dict(properties(schema_of_values()))
    assert [path for path, entry in found.items() if not entry.get("description")] == []
    blocks = {path for path, entry in found.items() if "properties" in entry}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert sorted([*paths(values, blocks), *HANDED_DOWN]) == sorted(found)


def test_schema_is_open_only_where_kubernetes_itself_checks() -> None:
    found = {"": schema_of_values(), **dict(properties(schema_of_values()))}
    open_ones = [path for path, entry in found.items() if entry.get("type") == "object" and "additionalProperties" not in entry]
    assert open_ones == ["resources", "affinity", "podSecurityContext", "securityContext", "global"]


def test_operator_may_reach_the_port_of_the_trainers() -> None:
    assert f"- port: {TRAINER_PORT}\n" in (CHART / "templates" / "networkpolicy.yaml").read_text()
