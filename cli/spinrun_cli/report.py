"""Writing a report to its files."""

from pathlib import Path

from spinrun_cli.errors import InvalidInputError
from spinrun_cli.local.files import replace_file
from spinrun_cli.show.run_data import RunData


def write_report(data: RunData, output: Path) -> list[Path]:
    """Write the report of a run into a folder, which is made if need be.

    Args:
        data: The run.
        output: The folder.

    Returns:
        The page and the picture.

    Raises:
        InvalidInputError: The folder cannot be written to.
    """
    # matplotlib and jinja2 take a second to load.
    from spinrun_cli.show.charts import picture
    from spinrun_cli.show.page import render

    files = {
        output / "report.html": render(data).encode(errors="replace"),
        output / "curves.png": picture(data),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            replace_file(path, content)
    except OSError as error:
        raise InvalidInputError(f"cannot write the report to {output}: {error.strerror}; name another folder") from error
    return list(files)
