"""`spinrun validate`: what is wrong with SpinRun files, all of it at once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from spinrun_api.documents import InvalidDocumentError, Problem, parse_run, read_documents
from spinrun_api.run import KIND


@dataclass(frozen=True)
class CheckedDocument:
    """What was found in one document of a file, or in a file that could not be read."""

    source: str
    """File, with the number of the document where it holds several."""

    name: str | None = None
    """Name of a SpinRun that is right."""

    problems: list[Problem] = field(default_factory=list)
    """Everything that is wrong."""


def validate_files(files: Sequence[Path], *, as_json: bool) -> int:
    """Print a checked on every SpinRun of the files. Returns the exit code: 0 when all are right, else 2."""
    documents = [checked for path in files for checked in check_file(path)]
    typer.echo(json.dumps(_document(documents), indent=2) if as_json else "\n".join(map(_text, documents)))
    return 2 if any(checked.problems for checked in documents) else 0


def check_file(path: Path) -> list[CheckedDocument]:
    """A checked on every document of a file. Documents of another kind are passed over, but a file needs one SpinRun."""
    try:
        documents = read_documents(path)
    except InvalidDocumentError as error:
        return [CheckedDocument(str(path), problems=error.problems)]
    ours = [(number, document) for number, document in enumerate(documents, 1) if document.get("kind", KIND) == KIND]
    if not ours:
        return [CheckedDocument(str(path), problems=[Problem("kind", f"the file has no document of kind {KIND}: add one")])]
    return [_check(document, f"{path} (document {number})" if len(documents) > 1 else str(path)) for number, document in ours]


def _check(document: dict[str, Any], source: str) -> CheckedDocument:
    try:
        return CheckedDocument(source, name=parse_run(document, source).metadata.name)
    except InvalidDocumentError as error:
        return CheckedDocument(source, problems=error.problems)


def _text(checked: CheckedDocument) -> str:
    if not checked.problems:
        return f"{checked.source}: OK ({checked.name})"
    return "\n".join(f"{checked.source}: {problem}" for problem in checked.problems)


def _document(documents: Sequence[CheckedDocument]) -> list[dict[str, Any]]:
    return [
        {
            "source": checked.source,
            "valid": not checked.problems,
            "name": checked.name,
            "problems": [{"path": problem.path, "message": problem.message} for problem in checked.problems],
        }
        for checked in documents
    ]
