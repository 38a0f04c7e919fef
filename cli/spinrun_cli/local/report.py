"""Writing a report to its files."""

from dataclasses import dataclass
from pathlib import Path

from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.run_data import load_run_data
from spinrun_worker.ledger import LedgerError


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    page: Path
    picture: Path
    learning: str | None
    """What became of the held-out accuracy, in words."""


def write_report(folder: Path, output: Path) -> ReportFiles:
    """Write the report of a run's folder or ledger into another folder, which is made if need be.

    Raises:
        InvalidInputError: There is no run or the output cannot be written.
        CommandError: For figures that cannot be read.
    """
    try:
        data = load_run_data(folder)
    except LedgerError as error:
        raise CommandError(str(error)) from error
    # matplotlib and jinja2 take a second to load.
    from spinrun_cli.show.charts import write_picture
    from spinrun_cli.show.page import render

    files = ReportFiles(output / "report.html", output / "curves.png", data.learning)
    partial = output / ".report.partial"
    try:
        output.mkdir(parents=True, exist_ok=True)
        partial.write_text(render(data), encoding="utf-8", errors="replace")
        partial.replace(files.page)
        write_picture(partial, data)
        partial.replace(files.picture)
    except OSError as error:
        raise InvalidInputError(f"cannot write the report to {output}: {error.strerror}; name another folder") from error
    return files
