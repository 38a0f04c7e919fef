"""Whether a live object has drifted from what is wanted: compared without what the API server and others add to it."""

import hashlib
import json
from decimal import Decimal, InvalidOperation
from typing import Any

from spinrun_kube import names

Json = dict[str, Any]

_SUFFIXES = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)} | {
    suffix: Decimal(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
"""Of Kubernetes' quantities; two letters come first, because a text ends with the second of them too."""


# --- what was applied ----------------------------------------------------------------------------------------------


def with_hash(document: Json) -> Json:
    """The document with the annotation that says what was applied."""
    metadata = document["metadata"]
    annotations = metadata.get("annotations", {}) | {names.HASH_ANNOTATION: digest(document)}
    return document | {"metadata": metadata | {"annotations": annotations}}


def hash_of(document: Json) -> str:
    """What the annotation says; empty without it."""
    return document["metadata"].get("annotations", {}).get(names.HASH_ANNOTATION, "")


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# --- what is there -------------------------------------------------------------------------------------------------


def compared(document: Json) -> Json:
    """The document without labels and annotations that are not ours: the copies that informers keep need not have them. They are
    written when they change, as the hash says."""
    metadata = document["metadata"]
    ours = {
        name: {key: text for key, text in metadata[name].items() if key.startswith(names.OUR_PREFIXES)}
        for name in ("labels", "annotations")
        if name in metadata
    }
    return document | {"metadata": metadata | ours}


def covers(live: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; more may be there, such as defaults and what other controllers add."""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        return all(covers(live.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return not wanted and live is None
        return len(live) >= len(wanted) and all(covers(*pair) for pair in _pairs(live, wanted))
    return (live == wanted and isinstance(live, bool) == isinstance(wanted, bool)) or _same_quantity(live, wanted)


def projection(live: Any, wanted: Any) -> Any:
    """The part of `live` that `wanted` speaks of."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return {name: projection(live.get(name), value) for name, value in wanted.items()}
    if isinstance(wanted, list) and isinstance(live, list):
        return [projection(*pair) for pair in _pairs(live, wanted)]
    return live


def _pairs(live: list[Any], wanted: list[Any]) -> list[tuple[Any, Any]]:
    """Each wanted entry with the live one of its name, or of its place. Others may stand between ours: injected sidecars."""
    by_name = {name: entry for entry in live if (name := _entry_name(entry))}
    places = [*live, *([None] * len(wanted))]
    return [
        (by_name.get(name) if (name := _entry_name(entry)) else place, entry)
        for place, entry in zip(places, wanted, strict=False)
    ]


def _entry_name(entry: Any) -> str:
    """What tells an entry from the others of its list; empty when only its place does."""
    return str(entry.get("mountPath") or entry.get("name") or "") if isinstance(entry, dict) else ""


def _same_quantity(live: Any, wanted: Any) -> bool:
    """Whether two texts or numbers say the same amount: the API server writes 1000m as 1."""
    left, right = _quantity(live), _quantity(wanted)
    return left is not None and left == right


def _quantity(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value)
    suffix = next((suffix for suffix in _SUFFIXES if suffix and text.endswith(suffix)), "")
    try:
        return Decimal(text.removesuffix(suffix)) * _SUFFIXES[suffix]
    except InvalidOperation:
        return None
