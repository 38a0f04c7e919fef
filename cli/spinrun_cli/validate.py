"""`spinrun validate`: what is wrong with SpinRun files, all of it at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spinrun_api.documents import InvalidDocumentError, Problem, parse_run, read_documents
from spinrun_api.run import KIND
from spinrun_cli.output import echo, echo_json
from spinrun_protocol.model_limits import Config, parse_config, problems_with_model

MAX_CONFIG_BYTES = 4_000_000
"""Of a config.json that is looked into."""


@dataclass(frozen=True)
class CheckedDocument:
    """What was found in one document of a file, or in a file that could not be read."""

    source: str
    """File, with the number of the document where it holds several."""

    name: str | None = None
    """Name of a valid SpinRun."""

    problems: list[Problem] = field(default_factory=list)
    """Everything that is wrong."""


def validate_files(files: Sequence[Path], *, as_json: bool) -> int:
    """Checks every SpinRun of the files and prints what is wrong.

    Returns:
        The exit code: 0 when all are valid, otherwise 2.
    """
    checked = [document for path in files for document in check_file(path)]
    if as_json:
        echo_json(_for_programs(checked), indent=2)
    else:
        echo("\n".join(map(_text, checked)))
    return 2 if any(document.problems for document in checked) else 0


def check_file(path: Path) -> list[CheckedDocument]:
    """Checks every SpinRun of a file. Documents of another kind are skipped, but a file needs one SpinRun."""
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
        run = parse_run(document, source)
    except InvalidDocumentError as error:
        return CheckedDocument(source, problems=error.problems)
    config = _config_of(run.spec.model.source)
    return CheckedDocument(source, name=run.metadata.name, problems=problems_with_model(run, config) if config else [])


def _config_of(source: str) -> Config | None:
    """The config.json of a model whose folder is here; None for any other: nothing is fetched to validate a file."""
    path = Path(source) / "config.json"
    try:
        if not source.startswith("/") or not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        return parse_config(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _text(checked: CheckedDocument) -> str:
    if not checked.problems:
        return f"{checked.source}: OK ({checked.name})"
    return "\n".join(f"{checked.source}: {problem}" for problem in checked.problems)


def _for_programs(documents: Sequence[CheckedDocument]) -> list[dict[str, Any]]:
    return [
        {
            "source": checked.source,
            "valid": not checked.problems,
            "name": checked.name,
            "problems": [{"path": problem.path, "message": problem.message} for problem in checked.problems],
        }
        for checked in documents
    ]
