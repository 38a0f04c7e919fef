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
class Verdict:
    """What was found in one document of a file, or in a file that could not be read."""

    source: str
    """File, with the number of the document where it holds several."""

    name: str | None = None
    """Name of a SpinRun that is right."""

    problems: list[Problem] = field(default_factory=list)
    """Everything that is wrong."""


def validate_files(files: Sequence[Path], *, as_json: bool) -> int:
    """Print a verdict on every SpinRun of the files. Returns the exit code: 0 when all are right, else 2."""
    verdicts = [verdict for path in files for verdict in check_file(path)]
    typer.echo(json.dumps(_document(verdicts), indent=2) if as_json else "\n".join(map(_text, verdicts)))
    return 2 if any(verdict.problems for verdict in verdicts) else 0


def check_file(path: Path) -> list[Verdict]:
    """A verdict on every document of a file. Documents of another kind are passed over, but a file needs one SpinRun."""
    try:
        documents = read_documents(path)
    except InvalidDocumentError as error:
        return [Verdict(str(path), problems=error.problems)]
    ours = [(number, document) for number, document in enumerate(documents, 1) if document.get("kind", KIND) == KIND]
    if not ours:
        return [Verdict(str(path), problems=[Problem("kind", f"no document of kind {KIND} is in the file: write one")])]
    return [_check(document, f"{path} (document {number})" if len(documents) > 1 else str(path)) for number, document in ours]


def _check(document: dict[str, Any], source: str) -> Verdict:
    try:
        return Verdict(source, name=parse_run(document, source).metadata.name)
    except InvalidDocumentError as error:
        return Verdict(source, problems=error.problems)


def _text(verdict: Verdict) -> str:
    if not verdict.problems:
        return f"{verdict.source}: OK ({verdict.name})"
    return "\n".join(f"{verdict.source}: {problem}" for problem in verdict.problems)


def _document(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "source": verdict.source,
            "valid": not verdict.problems,
            "name": verdict.name,
            "problems": [{"path": problem.path, "message": problem.message} for problem in verdict.problems],
        }
        for verdict in verdicts
    ]
