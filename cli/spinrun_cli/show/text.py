"""Words, times and tables as text."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime

# --- text ----------------------------------------------------------------------------------------------------------


JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Invisible, but parts of emoji and of Persian and Indic words."""
_OTHER_THAN_ASCII = re.compile(r"[^ -~]")


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Text without characters that command a terminal or reorder a line: what a model says, or a file's name, must do neither.

    Args:
        text: Any text.
        keep: Control characters that stay.
    """
    return _OTHER_THAN_ASCII.sub(
        lambda found: found[0] if is_harmless(found[0], keep=keep) else "\N{REPLACEMENT CHARACTER}", text
    )


def is_harmless(character: str, *, keep: str = "\n") -> bool:
    """Whether a character only shows itself: letters, signs and spaces of any script.

    Args:
        character: One character.
        keep: Control characters that count as harmless.
    """
    return character.isprintable() or character in keep or character in JOINERS or unicodedata.category(character) == "Zs"


def hanging(first: str, text: str) -> str:
    """`first` and then the text, whose further lines stand below its first."""
    return "\n".join(line.rstrip() for line in (first + text.replace("\n", "\n" + " " * len(first))).splitlines())


# --- times ---------------------------------------------------------------------------------------------------------


LONGEST_SECONDS = 1e10
"""Three hundred years. What a document says beyond that is shown as that."""


def figure(value: float, digits: int) -> str:
    """A figure with a number of digits behind its point, while it is not too long for that.

    Args:
        value: The figure.
        digits: How many.
    """
    return f"{value:.{digits}f}" if abs(value) < LARGEST_WRITTEN_OUT else f"{value:.4g}"


LARGEST_WRITTEN_OUT = 1e12


def _bounded(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_SECONDS)


def age(seconds: float) -> str:
    """Seconds in their largest unit, as kubectl shows an age."""
    whole = int(_bounded(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def age_since(then: str | None, now: datetime) -> str:
    """Time since a moment of the API; empty when there was none."""
    return age((now - datetime.fromisoformat(then)).total_seconds()) if then else ""


def clock(seconds: float) -> str:
    """75 as 1:15."""
    minutes, seconds = divmod(int(_bounded(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: float) -> str:
    """75 as 1 min 15 s."""
    minutes, rest = divmod(round(_bounded(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- tables --------------------------------------------------------------------------------------------------------


def table(rows: Iterable[Sequence[object]], *, numbers: bool = False) -> str:
    """Rows of cells, the first the headings, aligned as kubectl does; an absent cell is empty.

    Args:
        rows: The rows, all of one length.
        numbers: Whether all columns but the first hold numbers, which are aligned at their right.
    """
    texts = [["" if cell is None else _cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = (
        "   ".join(
            cell.rjust(width) if numbers and index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(content: object) -> str:
    """A cell's content in one line: what it holds must not look like another row."""
    return printable(" ".join(str(content).expandtabs(1).splitlines()), keep="")
