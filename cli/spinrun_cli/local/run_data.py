"""Reading a run's folder or a ledger, finished or not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spinrun_api.documents import InvalidDocumentError, in_todays_shape, read_documents
from spinrun_api.redaction import redacted
from spinrun_cli.errors import InvalidInputError
from spinrun_cli.show.run_data import RunData
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_worker.ledger import Layout, TornError, read_metrics, read_samples
from spinrun_worker.records import ScoredGroup


def load_run_data(folder: Path) -> RunData:
    """Read a local run's folder, or a ledger.

    Raises:
        InvalidInputError: It is neither.
        TornError: The metrics are damaged.
        LedgerUnavailableError: The metrics cannot be read.
    """
    ledger = folder / "ledger" if (folder / "ledger").is_dir() else folder
    layout = Layout(ledger)
    if not any(path.exists() for path in (folder / "run.yaml", layout.run_record, layout.metrics)):
        raise InvalidInputError(f"{folder} holds neither a local run nor a ledger: name a folder with run.yaml or run.json in it")
    record = _record(layout.run_record)
    # What is made of it may be shown to anybody.
    document = redacted(in_todays_shape(_document(folder / "run.yaml") or (record.run if record else {})))
    lines = read_metrics(layout.metrics)
    evaluations = [line for line in lines if line.event == "evaluation"]
    notes: list[str] = []
    return RunData(
        name=str(document.get("metadata", {}).get("name", folder.resolve().name)),
        document=document,
        record=record,
        termination=_termination(folder / "last-words.json"),
        steps=[line for line in lines if line.event == "step"],
        windows=[line for line in lines if line.event == "window"],
        evaluations=evaluations,
        before=_answers(layout, [line for line in evaluations if line.version == 0], notes),
        after=_answers(layout, [line for line in evaluations if line.version > 0][-1:], notes),
        notes=[*notes, *_missing(lines, document)],
    )


def _missing(lines: Sequence[MetricsLine], document: dict[str, Any]) -> Iterator[str]:
    if not lines:
        yield "The ledger holds no figures yet: the first come when version 0 is evaluated or the first step is done."
    if not document.get("spec", {}).get("data", {}).get("evaluation"):
        yield "The run has no spec.data.evaluation, so there is no held-out accuracy."


def _answers(layout: Layout, evaluations: Sequence[MetricsLine], notes: list[str]) -> list[ScoredGroup]:
    for line in evaluations:
        try:
            return read_samples(layout.evaluation(line.version) / "samples.parquet")
        except TornError as error:
            notes.append(f"The answers of version {line.version} cannot be shown: {error}")
    return []


def _record(path: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _termination(path: Path) -> TerminationMessage | None:
    try:
        return TerminationMessage.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _document(path: Path) -> dict[str, Any] | None:
    try:
        return read_documents(path)[0]
    except InvalidDocumentError:
        return None
