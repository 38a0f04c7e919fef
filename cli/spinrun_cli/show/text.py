"""Text for a terminal."""

from collections.abc import Iterable, Sequence
from datetime import datetime


def printable(text: str) -> str:
    """Text without control characters but line ends: what a model says, or a file's name, must not command the terminal."""
    return "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text)


def hanging(first: str, text: str) -> str:
    """`first` and then the text, whose further lines stand below its first."""
    return "\n".join(line.rstrip() for line in (first + text.replace("\n", "\n" + " " * len(first))).splitlines())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the headings: the first column from the left, the others from the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "   ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def columns(rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells, the first the headings, as kubectl aligns them."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts)
    return "\n".join(lines)


def age(then: str | None, now: datetime) -> str:
    """Time since a moment of the API, in its largest unit; empty when there was none."""
    if not then:
        return ""
    seconds = max(0, int((now - datetime.fromisoformat(then)).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
