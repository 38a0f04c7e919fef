"""What JSON can hold, for documents that did not come through `yaml_text`: from Python, or from a file that anybody can write."""

import math
from collections.abc import Mapping
from typing import Any, cast

from spinrun_api.yaml_text import MAX_DEPTH, MAX_INTEGER, MIN_INTEGER


def checked_json(document: dict[str, Any]) -> dict[str, Any]:
    """A document of any shape, as it is.

    Args:
        document: What may hold anything.

    Raises:
        ValueError: JSON, as Kubernetes reads it, cannot hold it; the message begins with the place.
    """
    left: list[tuple[str, Any, int]] = [("", document, 1)]
    while left:
        path, value, depth = left.pop()
        if (fault := _fault(value)) is None and isinstance(value, dict | list) and depth > MAX_DEPTH:
            fault = f"more than {MAX_DEPTH} mappings and lists stand inside one another: remove some"
        if fault is not None:
            raise ValueError(f"{path}: {fault}" if path else fault)
        if isinstance(value, dict):
            left += [(f"{path}.{key}" if path else key, item, depth + 1) for key, item in cast(dict[str, Any], value).items()]
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(cast(list[Any], value))]
    return document


def _fault(value: object) -> str | None:
    """What keeps a value out of JSON, what stands inside it left aside."""
    match value:
        case None | bool() | list():
            return None
        case str():
            is_text = value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
            return None if is_text else "holds half of a surrogate pair: write the character itself"
        case int():
            in_range = MIN_INTEGER <= value <= MAX_INTEGER
            return None if in_range else f"is out of range: whole numbers go from {MIN_INTEGER} to {MAX_INTEGER}"
        case float():
            return None if math.isfinite(value) else f"{value} is not a finite number: write a number"
        case dict():
            odd = [key for key in cast(Mapping[object, Any], value) if not isinstance(key, str) or _fault(key)]
            return "has a key that is not text: put it in quotes, or correct it" if odd else None
        case _:
            return f"{type(value).__name__} is not a type of JSON: write a mapping, a list, text or a number"
