"""`spinrun logs` of a local run: the log files of its folder."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.files import open_regular
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.log_lines import LineSplitter, LineWriter
from spinrun_cli.queries import LogsQuery

POLL_SECONDS = 0.5
_LIFE = re.compile(rb"^--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)
"""How the log of each life of a process begins."""


@dataclass
class _Log:
    """The log of a process, and how far it has been read."""

    name: str
    path: Path
    position: int = 0
    splitter: LineSplitter = field(default_factory=LineSplitter)

    def lives(self) -> list[tuple[int, int]]:
        """Where each life begins and ends."""
        with open_regular(self.path) as file:
            text = file.read()
        starts = [match.start() for match in _LIFE.finditer(text)] or [0]
        return list(zip(starts, [*starts[1:], len(text)], strict=True))

    def read(self, end: int | None = None) -> bytes:
        """What there is from the position on, which moves behind it."""
        with open_regular(self.path) as file:
            file.seek(self.position)
            piece = file.read(-1 if end is None else end - self.position)
        self.position += len(piece)
        return piece


def show_logs(folder: Path, query: LogsQuery, *, as_json: bool) -> None:
    """Prints logs of a local run, with `follow` until it has ended.

    Raises:
        InvalidInputError: There is no such process.
        CommandError: A log cannot be read.
    """
    run = RunFolder(folder)
    logs = _chosen(run, query)
    write = LineWriter(as_json=as_json, expected=len(logs))
    try:
        for log in logs:
            _print_life(log, query, write)
        while query.follow:
            # Looked for before the last read: nothing is written after that.
            at_work = run.is_held()
            for log in logs:
                for line in log.splitter.lines(log.read()):
                    write(log.name, line)
            if not at_work:
                break
            time.sleep(POLL_SECONDS)
    except OSError as error:
        raise CommandError(f"cannot read {error.filename}: {error.strerror}") from error


def _chosen(run: RunFolder, query: LogsQuery) -> list[_Log]:
    """The logs that are meant, the trainer's first. Raises InvalidInputError when there are none."""
    present = [
        _Log(path.stem, path) for path in sorted(run.logs.glob("*.log"), key=lambda path: (path.stem != "trainer", path.stem))
    ]
    if not present:
        raise InvalidInputError(f"{run.root} holds no logs: a local run writes them once it has started")
    # All ranks of a machine write into one log.
    role = "trainer" if query.rank is not None else query.role
    chosen = [log for log in present if role in (None, log.name.partition("-")[0]) and query.pod in (None, log.name)]
    if not chosen:
        raise InvalidInputError(f"{run.root} has no such log; it has {', '.join(log.name for log in present)}")
    if query.previous:
        chosen = [log for log in chosen if len(log.lives()) > 1]
    if not chosen:
        raise InvalidInputError(f"no such process of {run.root} has a previous log")
    return chosen


def _print_life(log: _Log, query: LogsQuery, write: LineWriter) -> None:
    log.position, end = log.lives()[-2 if query.previous else -1]
    lines = log.splitter.lines(log.read(end))
    if not query.follow:
        lines += log.splitter.end()
    for line in lines if query.tail is None else lines[max(0, len(lines) - query.tail) :]:
        write(log.name, line)
