"""A report as one JSON document: how it travels from where the ledger is to where its reader is."""

import base64
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from spinrun_cli.errors import CommandError, InvalidInputError

FILES = ("report.html", "curves.png")


def bundled(folder: Path) -> str:
    """The report of a run's folder or ledger. It raises what `write_report` raises."""
    from spinrun_cli.local.report import write_report

    with TemporaryDirectory() as temporary:
        written = write_report(folder, Path(temporary))
        files = {name: base64.b64encode((Path(temporary) / name).read_bytes()).decode() for name in FILES}
    return json.dumps({"learning": written.learning, "files": files})


def unbundle(text: bytes, output: Path) -> tuple[str | None, list[Path]]:
    """Writes the files of a bundle into a folder, which is made if need be.

    Returns:
        What the run has learned, and the files.

    Raises:
        CommandError: The text is not a whole bundle.
        InvalidInputError: The folder cannot be written to.
    """
    try:
        document = json.loads(text)
        learning = document["learning"]
        contents = {name: base64.b64decode(document["files"][name]) for name in FILES}
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError("the report arrived incomplete: try again") from error
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            partial = output / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(output / name)
    except OSError as error:
        raise InvalidInputError(f"cannot write the report to {output}: {error.strerror}; name another folder") from error
    return learning, [output / name for name in FILES]
