"""Merging a user's pod template over the operator's, by name, as `kubectl patch` does."""

from typing import Any

from spinrun_api.pod_template import alternatives

Json = dict[str, Any]

# The field by which the entries of a list are told apart; lists that are not here are replaced as a whole.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def merge(base: Any, over: Any, *, field: str = "") -> Any:
    """`over` laid over `base`: objects field by field, lists with a merge key entry by entry, all else replaced.

    null in `over` removes what `base` has. Where fields exclude each other, as the sources of a volume do, those in `over` take
    the place of the others in `base`. Neither argument is changed. What is of the wrong type is taken as it is: the API server
    refuses it by name.

    Args:
        base: A part of the operator's template.
        over: The same part of the user's.
        field: The field that holds it, or the list of which it is an entry.
    """
    if isinstance(base, dict) and isinstance(over, dict):
        return _merge_objects(base, over, field)
    key = MERGE_KEYS.get(field)
    if key and isinstance(base, list) and isinstance(over, list):
        return _merge_lists(base, over, key, field)
    return over


def _merge_objects(base: Json, over: Json, field: str) -> Json:
    exclusive = alternatives(base.keys() | over.keys(), field)
    chosen = {name for name in exclusive if over.get(name) is not None}
    merged = {name: value for name, value in base.items() if not chosen or name in chosen or name not in exclusive}
    for name, value in over.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged[name], value, field=name) if name in merged else value
    return merged


def _merge_lists(base: list[Any], over: list[Any], key: str, field: str) -> list[Any]:
    """Entries of `base` in their order, merged with those of `over` that have the same key, then the rest of `over`."""
    changes = {_key(entry, key): entry for entry in over}
    present = {_key(entry, key) for entry in base}
    merged = [merge(entry, changes.get(_key(entry, key), entry), field=field) for entry in base]
    return merged + [entry for entry in over if _key(entry, key) not in present]


def _key(entry: Any, key: str) -> str:
    return str(entry.get(key)) if isinstance(entry, dict) else repr(entry)
