"""What a report is made of, read from a run's folder or from a ledger, finished or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spinrun_api.documents import InvalidDocumentError, in_todays_shape, read_documents
from spinrun_api.status import Best
from spinrun_cli.errors import InvalidInputError
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import LastWords
from spinrun_worker.ledger import Layout, TornError, read_metrics, read_samples
from spinrun_worker.records import ScoredGroup


@dataclass(frozen=True)
class RunData:
    """A run as its files tell it."""

    name: str
    document: dict[str, Any] = field(default_factory=dict)
    """The resolved SpinRun."""
    record: RunRecord | None = None
    """How the run was made; None before the trainer has written it."""
    words: LastWords | None = None
    """How the newest attempt ended; None while it goes on, or when the ledger is all there is."""
    steps: list[MetricsLine] = field(default_factory=list)
    windows: list[MetricsLine] = field(default_factory=list)
    evaluations: list[MetricsLine] = field(default_factory=list)
    before: list[ScoredGroup] = field(default_factory=list)
    """Answers of version 0 to the held-out prompts."""
    after: list[ScoredGroup] = field(default_factory=list)
    """Answers of the last version that was evaluated; empty while that is version 0."""
    notes: list[str] = field(default_factory=list)
    """What is missing, and why."""

    @property
    def accuracy(self) -> list[float] | None:
        """Accuracy of every evaluated version, in order; None when there is no evaluation yet."""
        return [line.values["accuracy"] for line in self.evaluations if "accuracy" in line.values] or None

    @property
    def best(self) -> Best | None:
        """The best version; the earlier of two that are equal."""
        lines = [line for line in self.evaluations if "accuracy" in line.values]
        if not lines:
            return None
        line = max(lines, key=lambda line: line.values["accuracy"])
        return Best(window=line.window, version=line.version, accuracy=line.values["accuracy"])

    @property
    def learning(self) -> str | None:
        """What became of the held-out accuracy, in words; None when there is no evaluation yet."""
        if self.accuracy is None or self.best is None:
            return None
        first, last = self.accuracy[0], self.accuracy[-1]
        return f"held-out accuracy {first:.3f} → {last:.3f} (best {self.best.accuracy:.3f}, version {self.best.version})"

    @property
    def num_steps(self) -> int:
        """Optimizer steps done."""
        return max((line.step for line in (*self.steps, *self.windows)), default=0)

    @property
    def seconds(self) -> float | None:
        """Seconds from the first figure to the last, pauses included."""
        times = [line.time for line in (*self.steps, *self.windows, *self.evaluations)]
        return max(times) - min(times) if len(times) > 1 else None


def load_run_data(folder: Path) -> RunData:
    """Read a local run's folder, or a ledger.

    Raises InvalidInputError when it is neither, TornError and LedgerUnavailableError for metrics that cannot be read.
    """
    ledger = folder / "ledger" if (folder / "ledger").is_dir() else folder
    layout = Layout(ledger)
    if not any(path.exists() for path in (folder / "run.yaml", layout.run_record, layout.metrics)):
        raise InvalidInputError(f"{folder} holds neither a local run nor a ledger: name a folder with run.yaml or run.json in it")
    record = _record(layout.run_record)
    document = in_todays_shape(_document(folder / "run.yaml") or (record.run if record else {}))
    lines = read_metrics(layout.metrics)
    evaluations = [line for line in lines if line.event == "evaluation"]
    notes: list[str] = []
    return RunData(
        name=str(document.get("metadata", {}).get("name", folder.resolve().name)),
        document=document,
        record=record,
        words=_words(folder / "last-words.json"),
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


def _words(path: Path) -> LastWords | None:
    try:
        return LastWords.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _document(path: Path) -> dict[str, Any] | None:
    try:
        return read_documents(path)[0]
    except InvalidDocumentError:
        return None
