"""metrics.jsonl: the figures of a run, line by line."""

import os
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from spinrun_protocol.ledger import MetricsLine
from spinrun_worker.ledger import durable
from spinrun_worker.ledger.errors import LedgerUnavailableError, TornError
from spinrun_worker.ledger.files import open_regular

_BLOCK_BYTES = 64 << 10


class MetricsFile:
    """The file, open for appending. An unfinished last line that an earlier attempt left is cut off first."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            LedgerUnavailableError: The volume refuses.
        """
        self.path = path
        self._descriptor = durable.open_to_append(path)
        durable.fsync_directory(path.parent)
        complete = self._complete_size()
        if complete < self._size():
            durable.truncate(self._descriptor, complete, path)

    def append(self, line: MetricsLine) -> None:
        """Write a line.

        Raises:
            LedgerUnavailableError: The volume refuses. The file is as it was before.
        """
        data = line.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
        size = self._size()
        try:
            durable.write(self._descriptor, memoryview(data), self.path)
        except LedgerUnavailableError:
            with suppress(LedgerUnavailableError):
                durable.truncate(self._descriptor, size, self.path)
            raise

    def sync(self) -> None:
        """Wait until all lines are on the volume."""
        durable.fsync(self._descriptor, self.path)

    def close(self) -> None:
        """Wait until all lines are on the volume, and close the file."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _size(self) -> int:
        with durable.unavailable(self.path, "stat"):
            return os.fstat(self._descriptor).st_size

    def _complete_size(self) -> int:
        """Bytes up to the end of the last complete line."""
        end = self._size()
        while end:
            start = max(0, end - _BLOCK_BYTES)
            with durable.unavailable(self.path, "read"):
                newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0


def read_metrics(path: Path) -> list[MetricsLine]:
    """The figures in the order of their steps; none when the file does not exist.

    An attempt repeats the steps after its checkpoint. For each step, window and evaluation the newest attempt's line counts, and
    the last of several. An unfinished last line is left out.

    Raises:
        TornError: Any other line cannot be read.
    """
    newest: dict[tuple[str, int], MetricsLine] = {}
    for line in _lines(path):
        key = (line.event, line.step if line.event == "step" else line.window)
        if key not in newest or line.attempt >= newest[key].attempt:
            newest.pop(key, None)  # the order is that of the lines that count
            newest[key] = line
    return sorted(newest.values(), key=lambda line: (line.step, line.window))


def _lines(path: Path) -> list[MetricsLine]:
    descriptor = open_regular(path)
    if descriptor is None:
        return []
    with durable.unavailable(path, "read"), os.fdopen(descriptor, "rb") as file:
        rows = file.read().split(b"\n")[:-1]  # after the last newline there is an unfinished line, or nothing
    lines: list[MetricsLine] = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(MetricsLine.model_validate_json(row))
        except ValidationError as error:
            # After a power failure the last line may have its length but not its content.
            if number == len(rows):
                break
            raise TornError(f"{path}, line {number}, is not a valid line of metrics: remove the line") from error
    return lines
