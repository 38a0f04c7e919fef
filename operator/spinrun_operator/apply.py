"""Writing what is wanted: only where it differs from what is there, and never over an object that is somebody else's."""

from collections.abc import Callable
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_kube.api import Api, ApiError
from spinrun_kube.kinds import CLAIM, CONFIG_MAP, SECRET, kind_of
from spinrun_operator import reasons
from spinrun_operator.children.ledger_claim import is_usable
from spinrun_operator.drift import compared, covers, digest, hash_of, projection, with_hash
from spinrun_operator.observed import Refusal, child_id

Json = dict[str, Any]

MADE_ONCE = (CLAIM, SECRET)
"""Kinds of children that stay as they were made: a volume, and a token that agents and trainer have read."""


class Applier:
    """Makes children of runs, and applies what has changed of them.

    It remembers which differences the API server makes of its own accord, so as not to apply them for ever, and which version of
    an object it found to be as wanted, so as not to compare it again.
    """

    def __init__(self, api: Api, on_written: Callable[[Json], object]) -> None:
        self._api = api
        self._on_written = on_written
        self._settled: dict[str, tuple[str, str]] = {}
        self._as_wanted: dict[str, tuple[Any, ...]] = {}
        self._owned: set[str] = set()
        """Objects whose fields are known to be those of server-side apply."""

    async def apply(self, run: SpinRun, wanted: Json, live: Json | None, *, was_refused: bool = False) -> Refusal | None:
        """Makes the child as wanted.

        Args:
            run: The run whose child it is.
            wanted: The child as it should be.
            live: The child as it is known; None: there is none, as far as is known.
            was_refused: Whether the last try met a refusal, so that what has the child's name may still be in its way.

        Returns:
            Why the child cannot be as wanted; None when it is.

        Raises:
            TRANSIENT: One of these, where a later attempt may succeed.
        """
        document = wanted if hash_of(wanted) else with_hash(wanted)
        kind, where = kind_of(wanted), (names.namespace(run), wanted["metadata"]["name"])
        try:
            if live is None and was_refused:
                live = await self._find(document)
            elif (
                live is not None and kind == CONFIG_MAP and names.belongs_to(run, live) and not self._is_as_wanted(document, live)
            ):
                # Of ConfigMaps the metadata alone is watched.
                live = await self._api.get(kind, *where)
            if live is None:
                if await self._create(document):
                    return None
                live = await self._find(document)
            if live is None:
                raise ApiError(409, "Conflict", "it was there, and is gone again")
            if refusal := _foreign(run, wanted, live):
                return refusal
            if kind not in MADE_ONCE and self._differs(document, live):
                await self._change(document, live)
        except ApiError as error:
            if not error.is_refusal:
                raise
            return _refusal(wanted, error)
        return None

    async def _create(self, document: Json) -> bool:
        """Makes the object; False where one of its name is there already."""
        try:
            made = await self._api.create(document)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return False
            raise
        self._as_wanted[made["metadata"]["uid"]] = _version(document, made)
        self._note(document, made)
        return True

    async def _find(self, document: Json) -> Json | None:
        """What has the object's name, and is not known: what has none of our labels is not watched."""
        kind, metadata = kind_of(document), document["metadata"]
        found = await self._api.get(kind, metadata["namespace"], metadata["name"], metadata_only=kind == SECRET)
        if found is not None:
            self._note(document, found)
        return found

    async def _change(self, document: Json, live: Json) -> None:
        """Applies the document to this very object."""
        metadata, uid = document["metadata"], live["metadata"]["uid"]
        if uid not in self._owned:
            await self._api.own_created_fields(kind_of(document), metadata["namespace"], metadata["name"])
            self._owned.add(uid)
        # Should the object be another one by now, the API server refuses it.
        written = await self._api.apply(document | {"metadata": metadata | {"uid": uid}})
        self._settle(document, written)
        self._note(document, written)

    def _note(self, wanted: Json, found: Json) -> None:
        """Lets the informers know what was found, before a watch tells of it."""
        self._on_written({**found, "kind": wanted["kind"], "apiVersion": wanted["apiVersion"]})

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
        self._owned.discard(document["metadata"]["uid"])


def _version(document: Json, live: Json) -> tuple[Any, ...]:
    """What was wanted, and the version of the object: with a generation its status, which is others', does not change it."""
    metadata = live["metadata"]
    if "generation" not in metadata:
        return hash_of(document), metadata.get("resourceVersion", "")
    ours = {name: text for name, text in metadata.get("labels", {}).items() if name.startswith(names.OUR_PREFIXES)}
    return hash_of(document), metadata["generation"], ours, hash_of(live)


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
