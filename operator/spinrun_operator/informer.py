"""A live copy of the runs' children of one kind: what carries a run's label, has a child's name, and is owned by that run."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any

from spinrun_kube.api import Api
from spinrun_kube.kinds import CLAIM, CONFIG_MAP, JOB, POD, SECRET, STATEFUL_SET, Kind
from spinrun_kube.names import OUR_PREFIXES, RUN_LABEL, controller_of, is_child_of
from spinrun_operator.follow import Follower, is_sound, version_of
from spinrun_operator.metrics import Metrics
from spinrun_operator.queue import Key
from spinrun_operator.settings import Settings
from spinrun_operator.trouble import names_missing_claim

Json = dict[str, Any]

METADATA_ONLY = (SECRET, CONFIG_MAP)
"""Kinds of whose objects no more than the metadata is asked for: what a Secret holds is nobody's business here, and anybody's
ConfigMap with our label may be a megabyte."""
KEPT_DELETIONS = 4096
REMEMBERED_OWNERS = 4096
"""Owners of which we did not know when an object named them."""
MOST_OF_A_RUN = 1000
"""Objects of a kind that are kept of one run."""
_LONGEST_OWNER = 300
_LONGEST_SHARED = 100
_NOBODY = "nobody, for a run named "
"""Stands for the owner of a claim that has none."""


class Informer:
    """The children of a kind in one namespace, or in all.

    An object is kept if one of its run's `owners` controls it: anybody can give an object our label. Whose owner becomes known
    later is read again by `catch_up`. `on_change` is told the key of the run whose child has changed, `on_gone` the object that
    is there no more.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str | None,
        settings: Settings,
        metrics: Metrics,
        *,
        owners: Callable[[Key], Collection[str]],
        on_change: Callable[[Key], None],
        on_gone: Callable[[Json], None],
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        metadata_only = kind in METADATA_ONLY
        self.follower = Follower(api, kind, namespace, self, settings, metrics, labels=RUN_LABEL, metadata_only=metadata_only)
        self._api = api
        self._metadata_only = metadata_only
        self._metrics = metrics
        self._owners = owners
        self._on_change = on_change
        self._on_gone = on_gone
        self._runs: dict[Key, dict[str, Json]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._unknown_owners: OrderedDict[str, None] = OrderedDict()

    def of_run(self, key: Key) -> list[Json]:
        """The run's objects."""
        return list(self._runs.get(key, {}).values())

    def known(self) -> Iterable[Json]:
        """All objects."""
        return [document for run in self._runs.values() for document in run.values()]

    def wants(self, document: Json) -> bool:
        """Whether the object is a child of a run that is known, and news of it."""
        key, metadata = _key(document), document["metadata"]
        if key is None or metadata["uid"] in self._deleted:
            return False
        run = self._runs.get(key, {})
        known = run.get(metadata["name"])
        if known is not None and version_of(known) >= version_of(document):
            return False
        if known is not None and known["metadata"]["uid"] == metadata["uid"]:
            return True
        if not self._is_owned(key, document):
            self._metrics.count_ignored(self.kind.plural, "foreign")
            return False
        if known is None and len(run) >= MOST_OF_A_RUN:
            self._metrics.count_ignored(self.kind.plural, "too many")
            return False
        return True

    def _is_owned(self, key: Key, document: Json) -> bool:
        """Whether it is controlled by an owner that its run has, or is a claim that an earlier run of that name has left."""
        metadata = document["metadata"]
        # The pods' names are their controller's to choose, who cuts them where they are too long.
        if self.kind != POD and not is_child_of(key[1], self.kind.name, metadata["name"]):
            return False
        controller, owners = controller_of(document), self._owners(key)
        owner = _NOBODY + key[1] if controller is None and self.kind == CLAIM else (controller or {}).get("uid")
        if owner in owners or (owners and isinstance(owner, str) and owner.startswith(_NOBODY)):
            return True
        if isinstance(owner, str) and len(owner) <= _LONGEST_OWNER:
            self._unknown_owners[owner] = None
            if len(self._unknown_owners) > REMEMBERED_OWNERS:
                self._unknown_owners.popitem(last=False)
        return False

    def put(self, document: Json) -> bool:
        """Takes an object in, unless it is not wanted. Whether it was."""
        if not self.wants(document):
            return False
        key = _key(document)
        assert key is not None
        run, name, kept = self._runs.setdefault(key, {}), document["metadata"]["name"], slim(document, self.kind)
        before = run.get(name, {})
        if "spec" in kept and before.get("spec") == kept["spec"]:
            kept["spec"] = before["spec"]  # mostly it is the status that has changed
        else:
            kept = shared(kept)
        run[name] = kept
        return True

    def forget(self, document: Json) -> None:
        """Takes an object out that is gone."""
        self._on_gone(document)
        key, name, uid = _key(document), document["metadata"]["name"], document["metadata"]["uid"]
        known = self._runs.get(key, {}) if key else {}
        if name in known and known[name]["metadata"]["uid"] == uid:
            del known[name]
            if key and not known:
                del self._runs[key]
        self._deleted[uid] = None
        if len(self._deleted) > KEPT_DELETIONS:
            self._deleted.popitem(last=False)

    def take(self, change: str, document: Json) -> None:
        """Takes in what a list or a watch says."""
        key = _key(document)
        if key is None:
            return
        if change == "LISTED":
            # What the newest list has is there, whatever was said before.
            self._deleted.pop(document["metadata"]["uid"], None)
        if change != "DELETED":
            before = self._runs.get(key, {}).get(document["metadata"]["name"])
            if self.put(document) and self._is_telling(change, before, self._runs[key][document["metadata"]["name"]]):
                self._on_change(key)
        elif key in self._runs or self._owners(key):
            # Also when it was not the run's: it may have had a child's name.
            self.forget(document)
            self._on_change(key)

    def _is_telling(self, change: str, before: Json | None, after: Json) -> bool:
        """Whether a pass over the run may decide otherwise for what was just taken in."""
        if before is not None and before["metadata"]["uid"] == after["metadata"]["uid"]:
            return telling(before, self.kind) != telling(after, self.kind)
        if self.kind == POD:
            return bool(_telling_of_pod(after))
        # What is made is made by us: whoever makes it knows.
        return change != "ADDED" or before is not None

    async def catch_up(self, key: Key) -> None:
        """Reads the run's objects that came before their owner was known. Raises one of TRANSIENT."""
        owners = self._owners(key)
        late = [owner for owner in (*owners, _NOBODY + key[1]) if owner in self._unknown_owners]
        if not owners or not late:
            return
        labels = f"{RUN_LABEL}={key[1]}"
        async for items, _ in self._api.pages(self.kind, key[0], labels=labels, metadata_only=self._metadata_only):
            for item in items:
                if is_sound(item, self.kind, key[0]):
                    self.put(item)
        for owner in late:
            self._unknown_owners.pop(owner, None)


def _key(document: Json) -> Key | None:
    metadata = document["metadata"]
    name = metadata.get("labels", {}).get(RUN_LABEL)
    return (metadata["namespace"], name) if name else None


_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "ownerReferences",
)
_READ_OF_PODS = ("phase", "reason", "message", "podIP", "conditions", "initContainerStatuses", "containerStatuses")
_READ_PREFIXES = (*OUR_PREFIXES, "batch.kubernetes.io/")


def slim(document: Json, kind: Kind) -> Json:
    """The document without what nobody here reads: most of its size."""
    found = document["metadata"]
    metadata = {name: found[name] for name in _METADATA if name in found}
    for name in ("labels", "annotations"):
        metadata[name] = {each: text for each, text in found.get(name, {}).items() if each.startswith(_READ_PREFIXES)}
    slimmed = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
    spec = document.get("spec", {})
    if kind in METADATA_ONLY:
        return slimmed
    if kind == POD:
        containers = {
            field: [{"name": each["name"], "resources": each.get("resources", {})} for each in spec.get(field) or ()]
            for field in ("initContainers", "containers")
            if field in spec
        }
        status = {name: value for name, value in document.get("status", {}).items() if name in _READ_OF_PODS}
        return slimmed | {"spec": {"nodeName": spec.get("nodeName"), **containers}, "status": status}
    if kind == JOB:
        # A Job is made once and never compared again.
        kept = {name: spec[name] for name in ("parallelism", "completions") if name in spec}
        return slimmed | {"spec": kept, "status": document.get("status", {})}
    return slimmed | {name: value for name, value in document.items() if name not in slimmed}


def shared(value: Any) -> Any:
    """The same value, of whose texts there is one in memory, however many documents say them: most of what these take is keys."""
    if isinstance(value, dict):
        return {sys.intern(name): shared(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shared(each) for each in value]
    return sys.intern(value) if type(value) is str and len(value) <= _LONGEST_SHARED else value


# --- what matters --------------------------------------------------------------------------------------------------

_QUIET_CONDITIONS = ("Initialized", "Ready", "ContainersReady", "PodReadyToStartContainers")
"""Conditions of pods by which nothing is decided: of servers that are ready their StatefulSet tells. For a node a pod may wait a
while, and is looked at from time to time meanwhile."""
_STARTING = ("ContainerCreating", "PodInitializing")
"""What containers wait for that nobody needs to be told of."""


def telling(document: Json, kind: Kind) -> Json:
    """Of a document that was made slim, what decisions depend on. Other changes are taken in and wake nobody."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "resourceVersion"}
    if kind in METADATA_ONLY:
        # Only its version tells that somebody has changed it.
        return document
    told = document | {"metadata": metadata}
    status = document.get("status", {})
    if kind == POD:
        return told | {"spec": None, "status": _telling_of_pod(document)}
    if kind == CLAIM:
        return told | {"spec": None, "status": status.get("phase") == "Lost"}
    if kind == STATEFUL_SET:
        return told | {"status": status.get("readyReplicas", 0)}
    if kind == JOB:
        return told | {"status": [(each.get("type"), each.get("status")) for each in status.get("conditions") or ()]}
    return told


def _telling_of_pod(pod: Json) -> Json:
    """What a pod tells; nothing while it is new and nothing keeps it from starting."""
    status = pod.get("status", {})
    told = {name: status[name] for name in ("phase", "podIP", "reason", "message") if name in status}
    if told == {"phase": "Pending"}:
        told = {}
    told["conditions"] = [
        {name: each.get(name) for name in ("type", "status", "reason", "message")}
        for each in status.get("conditions") or ()
        if each.get("type") not in _QUIET_CONDITIONS
        and (each.get("type") != "PodScheduled" or names_missing_claim(each.get("message") or ""))
    ]
    for kind in ("initContainerStatuses", "containerStatuses"):
        told[kind] = [told_of for each in status.get(kind) or () if (told_of := _telling_of_container(each))]
    return {name: value for name, value in told.items() if value}


def _telling_of_container(status: Json) -> Json:
    state = status.get("state", {})
    if state.get("waiting", {}).get("reason") in _STARTING and not status.get("lastState"):
        return {}
    return {"name": status.get("name"), "state": state, "lastState": status.get("lastState")}
