"""Snapshots of a local run: what its supervisor and its ledger say in its folder."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinrun_api.base import LARGEST_COUNT
from spinrun_api.status import Metrics
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.files import open_regular
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.run_data import read_document, run_name
from spinrun_cli.show.run_data import value_at
from spinrun_cli.show.snapshot import Outcome, Snapshot, WindowFigures
from spinrun_cli.terminal import Show
from spinrun_protocol.ledger import MetricsLine
from spinrun_protocol.logs import plain
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Progress
from spinrun_worker.ledger import LedgerError, TornError, read_metrics

Json = dict[str, Any]

POLL_SECONDS = 1.0
NUM_LOG_LINES = 3
TAIL_BYTES = 8192
_LINE = re.compile(r"[-\d]+ ([:\d]+),\d+ ([A-Z]+) (?:[a-z]+ \d+ )*[\w.]+: (.*)", re.DOTALL)
"""Time, level and message of a plain line of log."""


def watch_folder(path: Path, show: Show) -> Snapshot:
    """Shows a run until it has ended.

    Returns:
        The last snapshot.

    Raises:
        InvalidInputError: The folder holds no local run.
        CommandError: Its figures cannot be read.
    """
    folder = RunFolder(path)
    if not os.path.lexists(folder.run_file):
        raise InvalidInputError(
            f"{path} is a ledger and not the folder of a local run: `spinrun report {path}` shows what is in it"
        )
    while True:
        snapshot = look(folder)
        show(snapshot)
        if snapshot.outcome is not None:
            return snapshot
        time.sleep(POLL_SECONDS)


def look(folder: RunFolder) -> Snapshot:
    """The run as its files tell it now.

    Raises:
        InvalidInputError: The figures, or run.yaml, are damaged.
        CommandError: They cannot be read.
    """
    # Before the files: what is written in its last moment must not be missed.
    at_work = folder.is_held()
    termination = folder.termination()
    try:
        lines = read_metrics(folder.ledger / "metrics.jsonl")
    except TornError as error:
        raise InvalidInputError(str(error)) from error
    except LedgerError as error:
        raise CommandError(str(error)) from error
    attempt = folder.attempt()
    progress = folder.progress()
    if progress is not None and progress.attempt < attempt and at_work:
        progress = None  # that of a trainer that has ended
    document = read_document(folder.run_file) or {}
    outcome = None if at_work else _outcome(folder, termination)
    if progress is None and lines and not at_work:
        progress = _recorded(lines, document)
    if outcome is not None and progress is not None:
        progress = _ended(progress, termination)
    return Snapshot(
        name=run_name(document, folder.root),
        phase=outcome.result if outcome else "Starting" if progress is None or progress.activity == "starting" else "Running",
        attempt=attempt,
        progress=progress,
        windows=by_window(lines),
        news=() if outcome else _log_lines(folder.logs / "trainer.log"),
        outcome=outcome,
    )


def by_window(lines: Sequence[MetricsLine]) -> list[WindowFigures]:
    """The figures of each window."""
    windows = {line.window: line.values for line in lines if line.event == "window"}
    accuracies = {line.window: line.values.get("accuracy") for line in lines if line.event == "evaluation"}
    return [
        WindowFigures(
            window=number,
            accuracy=accuracies.get(number),
            reward=values.get("reward/mean"),
            pairs=values.get("pairs"),
            ties=values.get("ties"),
            samples_per_second=values.get("throughput/samples_per_second"),
        )
        for number in sorted(windows.keys() | accuracies.keys())
        for values in [windows.get(number, {})]
    ]


def _outcome(folder: RunFolder, termination: TerminationMessage | None) -> Outcome:
    """How a run ended that no process on this machine works on."""
    if termination is not None and termination.result in ("Complete", "Failed"):
        return Outcome(termination.result, termination.message)
    said = termination.message if termination else "it was cut off before its trainer could say why"
    return Outcome("Stopped", f"{said}; `spinrun local RUN.yaml --output {folder.root} --resume` continues it")


def _recorded(lines: Sequence[MetricsLine], document: Json) -> Progress:
    """What the ledger alone tells of a run that is over."""
    last = lines[-1]
    wanted = value_at(document, "spec", "duration", "windows")
    windows = wanted if isinstance(wanted, int) and 0 <= wanted <= LARGEST_COUNT else 0
    return Progress(uid="", attempt=last.attempt, activity="finished", window=last.window, windows=windows, step=last.step,
                    total_steps=0, version=last.version, metrics=_metrics(lines))  # fmt: skip


def _metrics(lines: Sequence[MetricsLine]) -> Metrics:
    """The newest figure of each kind."""
    newest: dict[str, float] = {}
    for line in lines:
        newest |= {f"{line.event} {name}": value for name, value in line.values.items()}
    return Metrics(
        loss=newest.get("step loss"),
        reward=newest.get("window reward/mean"),
        accuracy=newest.get("evaluation accuracy"),
        margin=newest.get("step rewards/margins"),
        samples_per_second=newest.get("window throughput/samples_per_second"),
    )


def _ended(progress: Progress, termination: TerminationMessage | None) -> Progress:
    """The last progress, with what the trainer said at its end and nobody has asked for since."""
    update: Json = {"eta_seconds": None, "message": ""}
    if termination is not None:
        update |= termination.model_dump(include={"window", "step", "version"}, exclude_none=True)
    if termination is not None and termination.result == "Complete":
        update |= {"activity": "finished", "total_steps": termination.step or progress.total_steps}
    if termination is not None and termination.accuracy is not None:
        update["metrics"] = progress.metrics.model_copy(update={"accuracy": termination.accuracy})
    return progress.model_copy(update=update)


def _log_lines(path: Path) -> list[str]:
    """The end of a log. A progress bar draws over itself: only its newest state counts."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            rows = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [_brief(row) for row in rows if row.strip() and not row.startswith("---")][-NUM_LOG_LINES:]


def _brief(row: str) -> str:
    """A line of log without what the view says anyway, and without the place in the code."""
    found = _LINE.fullmatch(plain(row))
    if found is None:
        return row
    time, level, message = found.groups()
    return f"{time} {message}" if level == "INFO" else f"{time} {level} {message}"
