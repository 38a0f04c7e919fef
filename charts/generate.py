"""Writes the chart's generated files.

They are the CRD, dashboards and alerts, and from values.yaml the table in README.md and the schema's descriptions.

After a change of the CRD, of charts/monitoring or of values.yaml:

    python charts/generate.py           # writes
    python charts/generate.py --check   # names what is out of date, and exits with 1 if anything is
"""

import json
import re
import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from monitoring.alerts import alert_rules
from monitoring.fleet import fleet_dashboard
from monitoring.operator import operator_dashboard
from monitoring.rollout import rollout_dashboard
from monitoring.run import run_dashboard

CHART = Path(__file__).resolve().parent / "spinrun"
VALUES, README, SCHEMA = CHART / "values.yaml", CHART / "README.md", CHART / "values.schema.json"
DASHBOARDS = {"run": run_dashboard, "fleet": fleet_dashboard, "operator": operator_dashboard, "rollout": rollout_dashboard}
CRD = CHART.parents[1] / "crds" / "spinrun.dev_spinruns.yaml"

TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)

Json = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A value of the chart with a comment above it."""

    path: tuple[str, ...]
    default: Any
    description: str


def documented_values(text: str) -> list[Value]:
    """The values of a values.yaml, in order. Those without a comment are parts of a default, such as `resources.limits`."""
    defaults = yaml.safe_load(text)
    values: list[Value] = []
    comment: list[str] = []
    path: tuple[str, ...] = ()
    for line in text.splitlines():
        if words := re.fullmatch(r" *# (.*)", line):
            comment.append(words[1])
            continue
        if key := re.match(r"( *)(\w+):", line):
            path = (*path[: len(key[1]) // 2], key[2])
            if comment:
                default = reduce(lambda block, name: block[name], path, defaults)
                values.append(Value(path, default, " ".join(comment)))
        comment = []
    return values


def table(values: list[Value]) -> str:
    """The values as a Markdown table. A block has no default of its own; its values follow it."""
    blocks = {value.path[:-1] for value in values}
    rows = [
        f"| `{'.'.join(value.path)}` | {'' if value.path in blocks else f'`{json.dumps(value.default)}`'} | {value.description} |"
        for value in values
    ]
    return "\n".join(["", "| Value | Default | Description |", "|---|---|---|", *rows, "", ""])


def readme(text: str, values: list[Value]) -> str:
    """The README with the table of values filled in."""
    return TABLE.sub(lambda _: table(values), text)


def schema(text: str, values: list[Value]) -> str:
    """The schema with the descriptions of the values.

    Raises:
        KeyError: The schema lacks a value.
    """
    document = json.loads(text)
    for value in values:
        place: Json = reduce(lambda block, name: block["properties"][name], value.path, document)
        kind = {name: entry for name, entry in place.items() if name != "description"}
        place.clear()
        place |= {"description": value.description} | kind
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def generated() -> dict[Path, str]:
    """The files as they should be."""
    values = documented_values(VALUES.read_text())
    return {
        README: readme(README.read_text(), values),
        SCHEMA: schema(SCHEMA.read_text(), values),
        # Helm packages nothing from outside a chart's folder.
        CHART / "files" / CRD.name: CRD.read_text(),
        CHART / "files" / "alerts.yaml": alert_rules(),
        **{CHART / "files" / "dashboards" / f"{name}.json": make() for name, make in DASHBOARDS.items()},
    }


def main(*, check: bool) -> int:
    """Write the files, or check them; returns the exit status."""
    stale = {file: text for file, text in generated().items() if not file.exists() or file.read_text() != text}
    for file, text in stale.items():
        if check:
            print(f"{file} is out of date: run `python charts/generate.py`", file=sys.stderr)
        else:
            file.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
