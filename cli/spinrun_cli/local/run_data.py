"""Reading a run's folder or a ledger, finished or not."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spinrun_api.documents import InvalidDocumentError, in_todays_shape, read_documents
from spinrun_api.json_values import checked_json
from spinrun_api.redaction import redacted
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.show.run_data import RunData, value_at
from spinrun_cli.target import ledger_of
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_worker.ledger import Layout, LedgerError, TornError, read_metrics, read_record, read_samples
from spinrun_worker.records import ScoredGroup


def load_run_data(folder: Path) -> RunData:
    """Read a local run's folder, or a ledger.

    Raises:
        InvalidInputError: It is neither, or one of its files is damaged.
        CommandError: It cannot be read.
    """
    try:
        return _load(folder)
    except TornError as error:
        raise InvalidInputError(f"{error}, or restore it from a copy") from error
    except LedgerError as error:
        raise CommandError(str(error)) from error


def _load(folder: Path) -> RunData:
    layout = Layout(ledger_of(folder))
    if not any(path.exists() for path in (folder / "run.yaml", layout.run_record, layout.metrics)):
        raise InvalidInputError(f"{folder} holds neither a local run nor a ledger: name a folder with run.yaml or run.json in it")
    record = _record(layout.run_record)
    # What is made of it may be shown to anybody.
    document = redacted(in_todays_shape(read_document(folder / "run.yaml") or (record.run if record else {})))
    lines = read_metrics(layout.metrics)
    evaluations = [line for line in lines if line.event == "evaluation"]
    notes: list[str] = []
    return RunData(
        name=run_name(document, folder),
        document=document,
        record=record,
        termination=read_record(folder / "last-words.json", TerminationMessage),
        steps=[line for line in lines if line.event == "step"],
        windows=[line for line in lines if line.event == "window"],
        evaluations=evaluations,
        before=_answers(layout, [line for line in evaluations if line.version == 0], notes),
        after=_answers(layout, [line for line in evaluations if line.version > 0][-1:], notes),
        notes=[*notes, *_missing(lines, document)],
    )


def _missing(lines: Sequence[MetricsLine], document: object) -> Iterator[str]:
    if not lines:
        yield "The ledger holds no figures yet: the first come when version 0 is evaluated or the first step is done."
    if not value_at(document, "spec", "data", "evaluation"):
        yield "The run has no spec.data.evaluation, so there is no held-out accuracy."


def _answers(layout: Layout, evaluations: Sequence[MetricsLine], notes: list[str]) -> list[ScoredGroup]:
    for line in evaluations:
        try:
            return read_samples(layout.evaluation(line.version) / "samples.parquet")
        except TornError as error:
            notes.append(f"The answers of version {line.version} cannot be shown: {error}")
    return []


def run_name(document: object, folder: Path) -> str:
    """The name of a run: that of its document, or that of its folder where the document has none.

    Args:
        document: Of any shape.
        folder: Where it is.
    """
    name = value_at(document, "metadata", "name")
    return name if isinstance(name, str) and name else folder.resolve().name


def read_document(path: Path) -> dict[str, Any] | None:
    """The SpinRun in a file, in its current shape or an earlier one; None if the file does not exist.

    Args:
        path: The file.

    Raises:
        InvalidInputError: It is damaged.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_documents(path)[0]
    except InvalidDocumentError as error:
        raise InvalidInputError(f"{error}; restore the file, or remove it") from error


def _record(path: Path) -> RunRecord | None:
    """How the run was made. Raises TornError, LedgerUnavailableError."""
    record = read_record(path, RunRecord)
    if record is not None:
        try:
            checked_json(record.run)
        except ValueError as error:
            raise TornError(f"{path} holds a run that is not one: {error}: remove it") from error
    return record
