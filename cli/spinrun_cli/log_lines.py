"""Lines of processes' logs."""

from spinrun_cli.output import echo, echo_json
from spinrun_protocol.logs import plain


class LineWriter:
    """Prints the lines of processes; as soon as there are several, each line is prefixed with its process.

    Lines that are for programs are shown as people read them, unless programs read these too.
    """

    def __init__(self, *, as_json: bool, expected: int = 1) -> None:
        """Prints nothing yet.

        Args:
            as_json: Whether programs read the lines.
            expected: Number of processes at the start.
        """
        self._as_json = as_json
        self._expected = expected
        self._seen: set[str] = set()

    def __call__(self, process: str, line: str) -> None:
        """Prints a line. A progress bar draws over itself: only its last state is shown."""
        line = line.rstrip("\r").rpartition("\r")[2]
        self._seen.add(process)
        if self._as_json:
            echo_json({"process": process, "line": line})
        elif max(self._expected, len(self._seen)) > 1:
            echo(f"[{process}] {plain(line)}")
        else:
            echo(plain(line))


class LineSplitter:
    """Lines out of pieces of a text that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def lines(self, piece: bytes) -> list[str]:
        """The lines that are whole with this piece."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def end(self) -> list[str]:
        """What is left after the last line end, which is one line or none."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []
