"""What is in a row: columns and the fields inside them, values as text, and why a row does not become a prompt."""

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from difflib import get_close_matches
from typing import Literal, cast

from spinrun_worker.data.sources import Row, Table
from spinrun_worker.errors import ConfigurationError

DropReason = Literal["too_long", "empty", "no_answer", "malformed"]

BATCH = 1024
"""Rows that are read at once."""

_INDEX = re.compile(r"-?[0-9]{1,9}")
_MAX_DEPTH = 32
_MOST_NAMES = 40
_NAMED_DEPTH = 3
_MISSING = object()


class RowError(ValueError):
    """A row that does not become a prompt."""

    def __init__(self, reason: DropReason, message: str) -> None:
        super().__init__(message)
        self.reason: DropReason = reason


# Where a value is


def value_at(row: Row, path: str) -> object:
    """What a row has in a column, or in a field inside it; None where it has no such column or field.

    Args:
        row: The row.
        path: A column's name or, with dots, the way to a field: `reward_model.ground_truth`, `answers.0`, `turns.-1.content`. A
            name that itself has a dot comes before a field.
    """
    found = _find(row, path)
    return None if found is _MISSING else found


def require_column(path: str, table: Table, *, field: str, hint: str = "") -> None:
    """Look for a column or a field inside one, which at least one row must have.

    Args:
        path: As for value_at.
        table: The rows.
        field: The spec's field, for messages.
        hint: Added to the message.

    Raises:
        ConfigurationError: No row has it. The message names what they have.
    """
    columns = table.columns
    if path in columns:
        return
    parents = [column for column in columns if path.startswith(f"{column}.")] if path.count(".") <= _MAX_DEPTH else []
    if parents and any(_find(row, path) is not _MISSING for row in _rows(table)):
        return
    inner = [
        name for row in table.take(range(min(len(table), 1))) for column in parents for name in _names(row.get(column), column)
    ]
    names = [*inner, *columns]
    close = get_close_matches(path, names, n=1)
    guess = f" Did you mean {close[0]}?" if close else ""
    known = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    raise ConfigurationError(f"{field}: there is no column {path!r}.{guess} The columns are: {known}{hint}")


def _rows(table: Table) -> Iterator[Row]:
    for start in range(0, len(table), BATCH):
        yield from table.take(range(start, min(start + BATCH, len(table))))


def _find(value: object, path: str) -> object:
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        if path in fields:
            return fields[path]
        dots = [match.start() for match in re.finditer(r"\.", path)]
        inner = (_find(fields[path[:dot]], path[dot + 1 :]) for dot in reversed(dots) if path[:dot] in fields)
        return next((found for found in inner if found is not _MISSING), _MISSING)
    if isinstance(value, list):
        elements = cast("list[object]", value)
        index, _, rest = path.partition(".")
        if _INDEX.fullmatch(index) and -len(elements) <= int(index) < len(elements):
            element = elements[int(index)]
            return _find(element, rest) if rest else element
    return _MISSING


def _names(value: object, path: str, depth: int = 1) -> Iterator[str]:
    """The ways to the fields inside a value, for messages."""
    if isinstance(value, dict) and depth <= _NAMED_DEPTH:
        for name, inner in cast("dict[str, object]", value).items():
            yield f"{path}.{name}"
            yield from _names(inner, f"{path}.{name}", depth + 1)


# What a value says


def is_missing(value: object) -> bool:
    """Whether there is no value: None, and what libraries write for it: NaN and NaT, which are not equal to themselves."""
    if value is None:
        return True
    return not isinstance(value, (str, bytes, list, dict)) and value != value


def text_of(value: object) -> str:
    """A value as text; empty where there is none.

    A whole number has no decimals: the 42 of a column that also has missing values is stored as 42.0.

    Raises:
        ValueError: It holds other values, or bytes that are not UTF-8.
    """
    if is_missing(value):
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError(f"holds a {type(cast(object, value)).__name__}, not text")
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return str(int(value))
    return str(value)


def number_of(value: object) -> float | None:
    """A value as a number, which may also be written as text; None for what is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
