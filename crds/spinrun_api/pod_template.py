"""Fields of a pod template of which an object may have one: sources of a volume, handlers of a probe, value and valueFrom.

The API server says so of a finished pod only. Here both who merges templates and who checks a user's own know it.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, cast

_HANDLERS = frozenset({"exec", "httpGet", "tcpSocket", "grpc", "sleep"})
_ONE_OF: Mapping[str, Set[str]] = {
    "livenessProbe": _HANDLERS,
    "readinessProbe": _HANDLERS,
    "startupProbe": _HANDLERS,
    "postStart": _HANDLERS,
    "preStop": _HANDLERS,
    "env": frozenset({"value", "valueFrom"}),
    "envFrom": frozenset({"configMapRef", "secretRef"}),
    "volumeMounts": frozenset({"subPath", "subPathExpr"}),
    "resourceClaims": frozenset({"resourceClaimName", "resourceClaimTemplateName"}),
}
"""Fields that exclude each other, by the field whose value, or whose entries, they are in."""
_ONE_OF_ALL = ("volumes", "valueFrom", "sources")
"""Of these, all fields do, but for the names."""


def alternatives(fields: Set[str], field: str) -> Set[str]:
    """Which of an object's fields exclude each other.

    Args:
        fields: Those that it has.
        field: The field that holds it, or the list of which it is an entry.
    """
    return fields - {"name"} if field in _ONE_OF_ALL else _ONE_OF.get(field, frozenset()) & fields


def clashes(value: Any, field: str = "", path: str = "") -> Iterator[tuple[str, str]]:
    """Every place in a pod template where fields exclude each other: its path, and what is wrong.

    Args:
        value: The template, or a part of it.
        field: The field that holds it, or the list of which it is an entry.
        path: Where it is.
    """
    if isinstance(value, Mapping):
        mapping = cast(Mapping[str, Any], value)
        # Kubernetes takes an empty text for none.
        given = [str(name) for name in alternatives(mapping.keys(), field) if mapping[name] not in (None, "")]
        if len(given) > 1:
            named = sorted(given)
            yield path, f"{', '.join(named[:-1])} and {named[-1]} exclude each other: keep one of them"
        for name, each in mapping.items():
            yield from clashes(each, str(name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(cast(Sequence[Any], value)):
            yield from clashes(each, field, f"{path}.{index}")
