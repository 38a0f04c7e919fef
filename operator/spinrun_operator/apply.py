"""Writing what is wanted: only where it differs from what is there, and never over an object that is somebody else's."""

from collections.abc import Callable
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_kube.api import Api, ApiError
from spinrun_kube.kinds import CONFIG_MAP, SECRET, kind_of
from spinrun_operator import reasons
from spinrun_operator.children.ledger_claim import is_usable
from spinrun_operator.drift import compared, covers, digest, hash_of, projection, with_hash
from spinrun_operator.observed import Refusal, child_id

Json = dict[str, Any]


class Applier:
    """Applies children of runs.

    It remembers which differences the API server makes of its own accord, so as not to apply them for ever, and which version of
    an object it found to be as wanted, so as not to compare it again.
    """

    def __init__(self, api: Api, on_written: Callable[[Json], object]) -> None:
        self._api = api
        self._on_written = on_written
        self._settled: dict[str, tuple[str, str]] = {}
        self._as_wanted: dict[str, tuple[str, str]] = {}

    async def apply(self, run: SpinRun, wanted: Json, live: Json | None) -> Refusal | None:
        """Makes the child as wanted.

        Args:
            run: The run whose child it is.
            wanted: The child as it should be.
            live: The child as it is known; None asks the API server for it.

        Returns:
            Why the child cannot be as wanted; None when it is.

        Raises:
            TRANSIENT: One of these, where a later attempt may succeed.
        """
        document, uid = wanted if hash_of(wanted) else with_hash(wanted), {}
        kind, where = kind_of(wanted), (names.namespace(run), wanted["metadata"]["name"])
        if live is None:
            live = await self._api.get(kind, *where, metadata_only=kind == SECRET)
        elif kind == CONFIG_MAP and names.belongs_to(run, live) and not self._is_as_wanted(document, live):
            # Of ConfigMaps the metadata alone is watched.
            live = await self._api.get(kind, *where)
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
        if self._is_as_wanted(document, live):
            return False
        if hash_of(live) != hash_of(document):
            return True
        uid = live["metadata"]["uid"]
        if not covers(live, compared(document)) and self._settled.get(uid) != _settlement(document, live):
            return True
        self._as_wanted[uid] = _version(document, live)
        return False

    def _is_as_wanted(self, document: Json, live: Json) -> bool:
        """Whether this very version of the object was found to be as wanted."""
        return self._as_wanted.get(live["metadata"]["uid"]) == _version(document, live)

    def _settle(self, document: Json, written: Json) -> None:
        uid = written["metadata"]["uid"]
        if covers(written, compared(document)):
            self._settled.pop(uid, None)
        else:
            self._settled[uid] = _settlement(document, written)
        self._as_wanted[uid] = _version(document, written)

    def forget(self, document: Json) -> None:
        """The object is gone."""
        self._settled.pop(document["metadata"]["uid"], None)
        self._as_wanted.pop(document["metadata"]["uid"], None)


def _version(document: Json, live: Json) -> tuple[str, str]:
    """What was wanted, and the version of the object."""
    return live["metadata"].get("resourceVersion", ""), hash_of(document)


def _settlement(document: Json, live: Json) -> tuple[str, str]:
    """What was wanted, and what the API server has made of it."""
    return hash_of(document), digest(projection(live, compared(document)))


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
