"""Several runs side by side: rows of tables, and one page of curves."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

from pydantic import ValidationError

from spinrun_api.base import models_in
from spinrun_api.spec import SpinRunSpec
from spinrun_cli.show.run_data import RunData, spread, value_at
from spinrun_cli.show.text import duration
from spinrun_protocol.ledger import MetricsLine

Runs = Sequence[tuple[str, RunData]]
"""Runs by the label under which the user named them."""
Rows = list[list[str]]

MOST_WINDOWS = 20
"""Windows of a table; of more, as many evenly spread."""
MOST_DIFFERENCES = 500
LONGEST_CELL = 1000
FIGURES = (("accuracy", "evaluation", "accuracy"), ("reward", "window", "reward/mean"), ("loss", "step", "loss"),
           ("response length", "window", "response_length/mean"), ("pairs", "window", "pairs"))  # fmt: skip
"""Figures of a table: heading, event and name in the metrics."""


def sound(runs: Runs) -> Runs:
    """Runs without figures that nothing can be made of."""
    return [(label, data.sound()) for label, data in runs]


def summary(runs: Runs) -> Rows:
    """A row for each run."""
    rows = [["run", "windows", "steps", "accuracy", "best", "time"]]
    for label, data in sound(runs):
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
    runs = sound(runs)
    for heading, event, name in FIGURES:
        columns = [_by_window(data, event, name) for _, data in runs]
        windows = spread(sorted({window for column in columns for window in column}), MOST_WINDOWS)
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


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def differences(runs: Runs) -> Rows:
    """The fields of the specs in which the runs differ."""
    specs = [dict(_leaves(_with_defaults(value_at(data.document, "spec")))) for _, data in runs]
    paths = sorted({path for spec in specs for path in spec})
    rows = [
        [path[:LONGEST_CELL], *(str(spec.get(path, "–"))[:LONGEST_CELL] for spec in specs)]
        for path in paths
        if len({str(spec.get(path)) for spec in specs}) > 1
    ]
    return [["field", *(label for label, _ in runs)], *rows[:MOST_DIFFERENCES]]


def _with_defaults(spec: Any) -> Any:
    """A spec with the defaults of its blocks filled in: a run that began before there was a field has what is now its default."""
    if not isinstance(spec, dict):
        return spec
    blocks = cast("dict[str, Any]", spec)
    filled: dict[str, Any] = {}
    for name, field in SpinRunSpec.model_fields.items():
        model = next(models_in(field.annotation), None)
        with suppress(ValidationError):
            if model is not None and name in blocks:
                filled[name] = model.model_validate(blocks[name]).to_document()
    return blocks | filled


def _leaves(value: Any, path: str = "spec") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{path}.{key}")


def render_comparison(runs: Runs) -> str:
    """The comparison as one HTML page that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from spinrun_cli.show.charts import COMPARISONS, compared_svg

    charts = [
        (comparison.title, Markup(compared_svg(comparison, [data for _, data in runs])))
        for comparison in COMPARISONS
        if any(comparison.has_data(data) for _, data in runs)
    ]
    loader = PackageLoader("spinrun_cli.show", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    labels = [label for label, _ in runs]
    return environment.get_template("compare.html.j2").render(
        labels=labels, summary=summary(runs), charts=charts, differences=differences(runs)
    )
