"""`spinrun compare`: the figures of several runs side by side. What it needs of a run is its document and its metrics."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.view import duration
from spinrun_cli.report.data import RunData
from spinrun_cli.text import aligned
from spinrun_protocol.ledger import MetricsLine

Json = dict[str, Any]
Runs = Sequence[tuple[str, RunData]]
"""Runs by the label under which the user named them."""
Rows = list[list[str]]

MOST_RUNS = 8
"""Colours of a chart."""
MOST_WINDOWS = 20
"""Windows of a table; of more, as many evenly spread."""
FIGURES = (("accuracy", "evaluation", "accuracy"), ("reward", "window", "reward/mean"), ("loss", "step", "loss"),
           ("response length", "window", "response_length/mean"), ("pairs", "window", "pairs"))  # fmt: skip
"""Figures of a table: heading, event and name in the metrics."""


# --- a run as a document, to be compared elsewhere -----------------------------------------------------------------


def load(folder: Path) -> RunData:
    """A local run's folder, or a ledger. Raises InvalidInputError when it is neither, CommandError when it cannot be read."""
    from spinrun_cli.report.data import load_run_data
    from spinrun_worker.ledger import LedgerError

    try:
        return load_run_data(folder)
    except LedgerError as error:
        raise CommandError(str(error)) from error


def to_document(label: str, data: RunData) -> Json:
    """The run with all of its figures."""
    lines = sorted((*data.steps, *data.windows, *data.evaluations), key=lambda line: line.time)
    return {"label": label, "name": data.name, "run": data.document, "lines": [line.to_document() for line in lines]}


def from_document(text: bytes) -> RunData:
    """The one run that `spinrun compare --output json` has printed elsewhere. Raises CommandError."""
    try:
        (run,) = json.loads(text)["runs"]
        lines = [MetricsLine.model_validate(line) for line in run["lines"]]
        steps, windows, evaluations = ([line for line in lines if line.event == event] for event in EVENTS)
        return RunData(run["name"], run["run"], steps=steps, windows=windows, evaluations=evaluations)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise CommandError("the figures of a run did not arrive whole: try again") from error


EVENTS = ("step", "window", "evaluation")


# --- what is shown -------------------------------------------------------------------------------------------------


def show(runs: Runs, *, as_json: bool, page: Path | None) -> None:
    """Prints the runs side by side and, where a page is wanted, writes it. Raises InvalidInputError when it cannot be written."""
    if as_json:
        typer.echo(json.dumps({"runs": [to_document(label, data) for label, data in runs]}, ensure_ascii=False))
    else:
        typer.echo("\n\n".join(aligned(rows) for rows in (summary(runs), *tables(runs))))
    if page is not None:
        write_page(page, runs)
        typer.echo(page, err=as_json)


def summary(runs: Runs) -> Rows:
    """A row for each run."""
    rows = [["run", "windows", "steps", "accuracy", "best", "time"]]
    for label, data in runs:
        best = data.best
        rows.append(
            [
                label,
                str(len(data.windows)),
                str(data.num_steps),
                _course(data.accuracy or []),
                f"{best.accuracy:.3f}, version {best.version}" if best else "",
                duration(data.seconds) if data.seconds is not None else "",
            ]
        )
    return rows


def _course(accuracies: Sequence[float]) -> str:
    """The first accuracy and, where there are more, the last."""
    ends = accuracies if len(accuracies) < 2 else (accuracies[0], accuracies[-1])
    return " → ".join(f"{each:.3f}" for each in ends)


def tables(runs: Runs) -> Iterator[Rows]:
    """For each figure that any run has, a row a window and a column a run."""
    for heading, event, name in FIGURES:
        columns = [_by_window(data, event, name) for _, data in runs]
        windows = _spread(sorted({window for column in columns for window in column}))
        if windows:
            cells = ([_cell(column.get(window)) for column in columns] for window in windows)
            yield [
                [f"{heading} by window", *(label for label, _ in runs)],
                *([str(window), *row] for window, row in zip(windows, cells, strict=True)),
            ]


def _by_window(data: RunData, event: str, name: str) -> dict[int, float]:
    """The mean of a figure in each window that has it."""
    lines: Iterable[MetricsLine] = getattr(data, f"{event}s")
    values: dict[int, list[float]] = {}
    for line in lines:
        if name in line.values:
            values.setdefault(line.window, []).append(line.values[name])
    return {window: sum(found) / len(found) for window, found in values.items()}


def _spread(windows: Sequence[int]) -> list[int]:
    """The first, the last and some between, where there are too many for a table."""
    if len(windows) <= MOST_WINDOWS:
        return list(windows)
    return [windows[round(index * (len(windows) - 1) / (MOST_WINDOWS - 1))] for index in range(MOST_WINDOWS)]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def differences(runs: Runs) -> Rows:
    """The fields of the specs in which the runs differ."""
    specs = [dict(_leaves(data.document.get("spec", {}))) for _, data in runs]
    paths = sorted({path for spec in specs for path in spec})
    rows = [
        [path, *(str(spec.get(path, "–")) for spec in specs)]
        for path in paths
        if len({str(spec.get(path)) for spec in specs}) > 1
    ]
    return [["field", *(label for label, _ in runs)], *rows]


def _leaves(value: Any, path: str = "spec") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{path}.{key}")


def write_page(path: Path, runs: Runs) -> None:
    """Writes the comparison as one HTML page that needs nothing else. Raises InvalidInputError when it cannot be written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from spinrun_cli.report.charts import COMPARISONS, compared_svg

    charts = [
        (comparison.title, Markup(compared_svg(comparison, [data for _, data in runs])))
        for comparison in COMPARISONS
        if any(comparison.has_data(data) for _, data in runs)
    ]
    loader = PackageLoader("spinrun_cli.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    labels = [label for label, _ in runs]
    text = environment.get_template("compare.html.j2").render(
        labels=labels, summary=summary(runs), charts=charts, differences=differences(runs)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}; name another file") from error
