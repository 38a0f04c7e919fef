"""A live copy of the objects of one kind that carry a run's label: a list, then a watch, and from time to time a list again."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from spinrun_kube.api import TRANSIENT, Api, ApiError
from spinrun_kube.kinds import POD, SECRET, Kind
from spinrun_kube.names import RUN_LABEL
from spinrun_operator.queue import Key
from spinrun_operator.settings import Settings

Json = dict[str, Any]

LONGEST_PAUSE_SECONDS = 30.0
KEPT_DELETIONS = 4096

logger = logging.getLogger(__name__)


class Informer:
    """The objects of a kind in one namespace, or in all.

    `on_change` is told the key of the run whose child has changed, `on_gone` the object that is there no more.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str | None,
        settings: Settings,
        on_change: Callable[[Key], None],
        on_gone: Callable[[Json], None],
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.synced = asyncio.Event()
        self.last_message = time.monotonic()
        """When the API server last said something."""
        self._api = api
        self._settings = settings
        self._on_change = on_change
        self._on_gone = on_gone
        # What a Secret holds is nobody's business here.
        self._metadata_only = kind == SECRET
        self._runs: dict[Key, dict[str, Json]] = {}
        self._deleted: deque[str] = deque(maxlen=KEPT_DELETIONS)

    def of_run(self, key: Key) -> list[Json]:
        """The objects with the run's label."""
        return list(self._runs.get(key, {}).values())

    def keys(self) -> list[Key]:
        """Runs that have objects of this kind."""
        return list(self._runs)

    def put(self, document: Json) -> bool:
        """Takes an object in, unless it is older than what is known. Whether it was news."""
        document = slim(document, self.kind)
        metadata = document["metadata"]
        key = _key(document)
        if key is None or metadata["uid"] in self._deleted:
            return False
        known = self._runs.get(key, {}).get(metadata["name"])
        if known is not None and version_of(known) >= version_of(document):
            return False
        self._runs.setdefault(key, {})[metadata["name"]] = document
        return True

    def forget(self, document: Json) -> None:
        """Takes an object out that is gone."""
        self._on_gone(document)
        self._deleted.append(document["metadata"]["uid"])
        key = _key(document)
        known = self._runs.get(key, {}) if key else {}
        if known.get(document["metadata"]["name"], {}).get("metadata", {}).get("uid") == document["metadata"]["uid"]:
            del known[document["metadata"]["name"]]
            if key and not known:
                del self._runs[key]

    async def run(self) -> None:
        """Follows the API server until it is cancelled, whatever that does."""
        pause = 0.0
        while True:
            try:
                await self._follow(await self._list())
                pause = 0.0
            except TRANSIENT as error:
                expired = isinstance(error, ApiError) and error.status == 410
                pause = 0.0 if expired else min(max(0.5, 2 * pause), LONGEST_PAUSE_SECONDS)
                logger.log(
                    logging.DEBUG if expired else logging.WARNING, "watch of %s: %s", self.kind.plural, error or type(error)
                )
            await asyncio.sleep(pause)

    async def _list(self) -> str:
        """Makes the copy equal to what is there now, and returns its version."""
        items, version = await self._api.list(self.kind, self.namespace, labels=RUN_LABEL, metadata_only=self._metadata_only)
        self.last_message = time.monotonic()
        present = {item["metadata"]["uid"] for item in items}
        for known in [document for run in self._runs.values() for document in run.values()]:
            # What is newer than the list came in by our own writes while the list was under way.
            if known["metadata"]["uid"] not in present and version_of(known) <= int(version):
                self._take("DELETED", known)
        for item in items:
            self._take("ADDED", item)
        self.synced.set()
        return version

    async def _follow(self, version: str) -> None:
        """Takes in every change until it is time for the next list."""
        events = self._api.watch(
            self.kind,
            self.namespace,
            labels=RUN_LABEL,
            version=version,
            seconds=self._settings.resync_seconds,
            metadata_only=self._metadata_only,
        )
        async for event in events:
            self.last_message = time.monotonic()
            if event["type"] != "BOOKMARK":
                self._take(event["type"], event["object"])

    def _take(self, change: str, document: Json) -> None:
        """One event."""
        if change == "DELETED":
            self.forget(document)
        elif not self.put(document):
            return
        if key := _key(document):
            self._on_change(key)


def _key(document: Json) -> Key | None:
    metadata = document["metadata"]
    name = metadata.get("labels", {}).get(RUN_LABEL)
    return (metadata["namespace"], name) if name else None


def version_of(document: Json) -> int:
    """The object's resource version, which grows with every change of the cluster."""
    return int(document["metadata"]["resourceVersion"])


def slim(document: Json, kind: Kind) -> Json:
    """The document without what nobody here reads: most of its size."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "managedFields"}
    slimmed = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
    if kind == SECRET:
        return slimmed
    if kind == POD:
        spec = document.get("spec", {})
        containers = {
            kind: [{"name": each["name"], "resources": each.get("resources", {})} for each in spec.get(kind) or ()]
            for kind in ("initContainers", "containers")
            if kind in spec
        }
        kept = {"spec": {"nodeName": spec.get("nodeName"), **containers}, "status": document.get("status", {})}
        return slimmed | kept
    return slimmed | {name: value for name, value in document.items() if name not in slimmed}
