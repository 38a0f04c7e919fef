"""`spinrun compare`: the figures of several runs side by side. What it needs of a run is its document and its metrics."""

from pathlib import Path
from typing import Any

from spinrun_api.base import Record
from spinrun_cli.bundle import by_event
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.files import replace_file
from spinrun_cli.output import echo, echo_json
from spinrun_cli.show.comparison import Runs, summary, tables
from spinrun_cli.show.run_data import Document, RunData
from spinrun_cli.show.text import table
from spinrun_protocol.ledger import MetricsLine

Json = dict[str, Any]

MOST_RUNS = 8
"""Colours of a chart."""


# --- a run as a document, to be compared elsewhere -----------------------------------------------------------------


def load(folder: Path) -> RunData:
    """A local run's folder, or a ledger.

    Raises:
        InvalidInputError: It is neither.
        CommandError: It cannot be read.
    """
    from spinrun_cli.local.run_data import load_run_data

    return load_run_data(folder)


def to_document(label: str, data: RunData) -> Json:
    """The run with all of its figures."""
    lines = sorted((*data.steps, *data.windows, *data.evaluations), key=lambda line: line.time)
    return {"label": label, "name": data.name, "run": data.document, "lines": [line.to_document() for line in lines]}


class ComparedRun(Record):
    """A run with all of its figures."""

    label: str
    """What the user called it."""

    name: str
    """Its name."""

    run: Document
    """The resolved SpinRun."""

    lines: list[MetricsLine]
    """Its figures."""


class ComparedRuns(Record):
    """What `spinrun compare --output json` prints."""

    runs: list[ComparedRun]
    """The runs."""


def from_document(text: bytes) -> RunData:
    """The one run that `spinrun compare --output json` has printed elsewhere.

    Raises:
        CommandError: The text is not the whole of one.
    """
    try:
        (run,) = ComparedRuns.model_validate_json(text).runs
    except ValueError as error:
        raise CommandError("the figures of a run arrived incomplete: try again") from error
    steps, windows, evaluations = by_event(run.lines)
    return RunData(run.name, run.run, steps=steps, windows=windows, evaluations=evaluations)


# --- what is shown -------------------------------------------------------------------------------------------------


def show(runs: Runs, *, as_json: bool, page: Path | None) -> None:
    """Prints the runs side by side and, where a page is wanted, writes it.

    Raises:
        InvalidInputError: It cannot be written.
    """
    if as_json:
        echo_json({"runs": [to_document(label, data) for label, data in runs]})
    else:
        echo("\n\n".join(table(rows, numbers=True) for rows in (summary(runs), *tables(runs))))
    if page is not None:
        write_page(page, runs)
        echo(page, err=as_json)


def write_page(path: Path, runs: Runs) -> None:
    """Writes the comparison as one HTML page that needs nothing else.

    Raises:
        InvalidInputError: It cannot be written.
    """
    from spinrun_cli.show.comparison import render_comparison

    text = render_comparison(runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode(errors="replace"))
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}; name another file") from error
