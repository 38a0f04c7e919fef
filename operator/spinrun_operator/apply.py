"""Writing what is wanted: only where it differs from what is there, and never over an object that is somebody else's."""

import hashlib
import json
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_kube.api import Api, ApiError
from spinrun_kube.kinds import SECRET, kind_of
from spinrun_operator import reasons
from spinrun_operator.children.ledger_claim import is_usable
from spinrun_operator.observed import Refusal, child_id

Json = dict[str, Any]

_SUFFIXES = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)} | {
    suffix: Decimal(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
"""Of Kubernetes' quantities; two letters come first, because a text ends with the second of them too."""


class Applier:
    """Applies children of runs.

    It remembers which differences the API server makes by itself, to not apply them for ever, and which version of an object it
    found to be as wanted, to not compare it again.
    """

    def __init__(self, api: Api, on_written: Callable[[Json], object]) -> None:
        self._api = api
        self._on_written = on_written
        self._settled: dict[str, tuple[str, str]] = {}
        self._as_wanted: dict[str, tuple[str, str]] = {}

    async def apply(self, run: SpinRun, wanted: Json, live: Json | None) -> Refusal | None:
        """Makes the child as wanted; returns why it cannot be. live: the child as it is known. Raises one of TRANSIENT."""
        document, uid = with_hash(wanted), {}
        if live is None:
            live = await self._api.get(
                kind_of(wanted), names.namespace(run), wanted["metadata"]["name"], metadata_only=kind_of(wanted) == SECRET
            )
        if live is not None:
            if refusal := _foreign(run, wanted, live):
                return refusal
            if not self._differs(document, live):
                return None
            # Should the object be another one by now, the API server refuses it.
            uid = {"uid": live["metadata"]["uid"]}
        try:
            written = await self._api.apply(document | {"metadata": document["metadata"] | uid})
        except ApiError as error:
            if not error.is_refusal:
                raise
            return _refusal(wanted, error)
        self._settle(document, written)
        self._on_written({**written, "kind": wanted["kind"], "apiVersion": wanted["apiVersion"]})
        return None

    def _differs(self, document: Json, live: Json) -> bool:
        uid, version = live["metadata"]["uid"], (live["metadata"].get("resourceVersion", ""), _hash_of(document))
        if self._as_wanted.get(uid) == version:
            return False
        if _hash_of(live) != _hash_of(document):
            return True
        if not covers(live, document) and self._settled.get(uid) != _settlement(document, live):
            return True
        self._as_wanted[uid] = version
        return False

    def _settle(self, document: Json, written: Json) -> None:
        if covers(written, document):
            self._settled.pop(written["metadata"]["uid"], None)
        else:
            self._settled[written["metadata"]["uid"]] = _settlement(document, written)

    def forget(self, document: Json) -> None:
        """The object is gone."""
        self._settled.pop(document["metadata"]["uid"], None)
        self._as_wanted.pop(document["metadata"]["uid"], None)


def _settlement(document: Json, live: Json) -> tuple[str, str]:
    """What was wanted, and what the API server has made of it."""
    return _hash_of(document), _digest(projection(live, document))


def with_hash(document: Json) -> Json:
    """The document with the annotation that says what was applied."""
    metadata = document["metadata"]
    annotations = metadata.get("annotations", {}) | {names.HASH_ANNOTATION: _digest(document)}
    return document | {"metadata": metadata | {"annotations": annotations}}


def _hash_of(document: Json) -> str:
    return document["metadata"].get("annotations", {}).get(names.HASH_ANNOTATION, "")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# --- whose object it is --------------------------------------------------------------------------------------------


def _foreign(run: SpinRun, wanted: Json, live: Json) -> Refusal | None:
    """Why an object that has the child's name may not be touched."""
    if names.belongs_to(run, live) or (wanted["kind"] == "PersistentVolumeClaim" and is_usable(run, live)):
        return None
    kind, name = child_id(wanted)
    owner = names.controller_of(live)
    if owner and (owner.get("kind"), owner.get("name")) == (run.kind, run.metadata.name):
        message = f"{kind} {name} of a deleted run of the same name is still there"
        return Refusal((kind, name), reasons.WAITING_FOR_CLEANUP, message)
    message = f"{kind} {name} exists and is not this run's: delete or rename it, or give the run another name"
    return Refusal((kind, name), reasons.CHILD_CONFLICT, message)


def _refusal(wanted: Json, error: ApiError) -> Refusal:
    kind, name = child_id(wanted)
    if error.status == 403 and "exceeded quota" in error.message:
        return Refusal((kind, name), reasons.QUOTA_EXCEEDED, f"{error.message}: raise the quota, or delete what uses it")
    if error.status == 403:
        return Refusal((kind, name), reasons.FORBIDDEN, f"the operator may not write {kind} {name}: {error.message}")
    message = f"the API server refuses {kind} {name}: {error.message}: correct the run's spec"
    return Refusal((kind, name), reasons.CHILD_REFUSED, message)


# --- whether it is as wanted ---------------------------------------------------------------------------------------


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
