"""Following the objects of one kind: a list, then a watch, and from time to time a list again, whatever the API server does."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any, Protocol

from spinrun_kube import times
from spinrun_kube.answers import AnswerTooLongError, InvalidAnswerError
from spinrun_kube.api import TRANSIENT, Api, ApiError
from spinrun_kube.kinds import Kind
from spinrun_operator.backoff import LONGEST_SECONDS, Backoff
from spinrun_operator.metrics import Metrics
from spinrun_operator.settings import Settings

Json = dict[str, Any]

HEALTHY_SECONDS = 30.0
"""A watch that lasted so long works."""
_LONGEST_NAME = 253
_LONGEST_VERSION = 20

logger = logging.getLogger(__name__)


class Copy(Protocol):
    """What becomes of the objects."""

    def take(self, change: str, document: Json) -> None:
        """Takes in what was said of an object.

        Args:
            change: LISTED, or what a watch says: ADDED, MODIFIED or DELETED.
            document: The object; all of its metadata is what it should be.
        """
        ...

    def wants(self, document: Json) -> bool:
        """Whether an object would be taken in, by its metadata alone."""
        ...

    def known(self) -> Iterable[Json]:
        """The objects that are held, which the next list may not have any more."""
        ...


class Follower:
    """Keeps a copy of the objects of a kind, in one namespace or in all.

    A failure of any kind makes it begin again, after a pause that grows. It ends by cancellation alone.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str | None,
        copy: Copy,
        settings: Settings,
        metrics: Metrics,
        *,
        labels: str = "",
        metadata_only: bool = False,
        longest_watch_seconds: float | None = None,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.synced = asyncio.Event()
        self.last_message = time.monotonic()
        """When the API server last said something that was understood."""
        self.trouble = ""
        """What the last list or watch failed by; empty while all is well."""
        self._api = api
        self._copy = copy
        self._metrics = metrics
        self._labels = labels
        self._metadata_only = metadata_only
        self._watch_seconds = min(settings.resync_seconds, longest_watch_seconds or settings.resync_seconds)
        self._stale_seconds = settings.watch_silence_seconds + LONGEST_SECONDS
        self._failures: Counter[str] = Counter()
        self._ignored: set[str] = set()

    @property
    def is_stale(self) -> bool:
        """Whether nothing was heard for longer than a silent watch and a pause take."""
        return time.monotonic() - self.last_message > self._stale_seconds

    async def run(self) -> None:
        """Follows the API server until it is cancelled."""
        backoff = Backoff(healthy_seconds=min(HEALTHY_SECONDS, self._watch_seconds / 2))
        while True:
            began, asked = time.monotonic(), None
            try:
                await self._watch(await self._list(), healthy_from=began + backoff.healthy_seconds)
                if time.monotonic() - began < backoff.healthy_seconds:
                    self._note_failure("ended", "the watch ended as soon as it had begun")
            except TRANSIENT as error:
                asked = error.retry_after if isinstance(error, ApiError) else None
                self._note_failure(_reason(error), str(error) or type(error).__name__)
            except Exception as error:
                # A mistake of ours about something odd that was sent: the runs are served on, by lists that succeed.
                if self._note_failure("internal", f"{type(error).__name__}: {error}") == 1:
                    logger.exception("watch of %s", self.kind.plural)
            await asyncio.sleep(backoff.pause(time.monotonic() - began, asked))

    async def _list(self) -> str:
        """Makes the copy equal to what is there now, and returns its version."""
        missing = {document["metadata"]["uid"]: document for document in self._copy.known()}
        version = ""
        listing = self._api.pages(self.kind, self.namespace, labels=self._labels, metadata_only=self._metadata_only)
        async with aclosing(listing) as pages:
            async for items, listed in pages:
                version = listed
                for item in items:
                    if await self._take("LISTED", item):
                        missing.pop(item["metadata"]["uid"], None)
        if not _is_version(version):
            raise InvalidAnswerError(f"the list has the version {version[:100]!r}, which is not a number")
        for document in missing.values():
            # What is newer than the list came in by our own writes while the list was under way.
            if version_of(document) <= int(version):
                self._copy.take("DELETED", document)
        self.last_message = time.monotonic()
        self.synced.set()
        return version

    async def _watch(self, version: str, *, healthy_from: float) -> None:
        """Takes in every change until it is time for the next list."""
        watching = self._api.watch(
            self.kind,
            self.namespace,
            labels=self._labels,
            version=version,
            seconds=self._watch_seconds,
            metadata_only=self._metadata_only,
        )
        async with aclosing(watching) as events:
            async for event in events:
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    await self._take(event["type"], event["object"])
                elif event["type"] == "SKIPPED":
                    self._ignore("too long", "an event that is too long to be read")
                self.last_message = time.monotonic()
                if self.last_message >= healthy_from:
                    self._note_recovery()

    async def _take(self, change: str, document: Json) -> bool:
        """Hands an object to the copy; whether it is one."""
        metadata = document.get("metadata")
        if isinstance(metadata, dict):
            document = document | {"metadata": {name: value for name, value in metadata.items() if value is not None}}
        if not is_sound(document, self.kind, self.namespace):
            self._ignore("invalid", "an object that is not as Kubernetes makes it")
            return False
        is_short = document.get("kind") == "PartialObjectMetadata" and not self._metadata_only
        if is_short and change != "DELETED" and self._copy.wants(document):
            found = await self._read(document)
            if found is not None:
                document, is_short = found, False
        if is_short and change != "DELETED":
            return True
        try:
            self._copy.take(change, document | {"apiVersion": self.kind.api_version, "kind": self.kind.name})
        except Exception:
            # One odd object does not keep the others from being seen.
            if self._ignore("internal", "an object on which the operator fails"):
                logger.exception("%s", self.kind.plural)
        return True

    async def _read(self, document: Json) -> Json | None:
        """The whole of an object that is too large for a page of a list; None where it cannot be read."""
        try:
            found = await self._api.get(self.kind, document["metadata"]["namespace"], document["metadata"]["name"])
        except (ApiError, InvalidAnswerError) as error:
            # Pods, for one, the operator may list and not get.
            if isinstance(error, ApiError) and not error.is_refusal:
                raise
            self._ignore("too long", f"an object that cannot be read ({error})")
            return None
        return found if found is not None and is_sound(found, self.kind, self.namespace) else None

    # --- what people are told --------------------------------------------------------------------------------------

    def _note_failure(self, reason: str, message: str) -> int:
        """Counts a failure, and tells of the first of its kind; returns how many of its kind there were since all was well."""
        self.trouble = f"{reason}: {message}"
        self._failures[reason] += 1
        self._metrics.count_watch_failure(self.kind.plural, reason)
        # A watch that expires or ends is an everyday matter, until the next does too.
        is_news = self._failures[reason] == (2 if reason in ("expired", "ended") else 1)
        level = logging.WARNING if is_news else logging.DEBUG
        logger.log(level, "watch of %s, %s: %s; it is tried again, more and more slowly", self.kind.plural, reason, message)
        return self._failures[reason]

    def _note_recovery(self) -> None:
        if self.trouble:
            logger.info("watch of %s works", self.kind.plural)
        self.trouble = ""
        self._failures.clear()

    def _ignore(self, reason: str, message: str) -> bool:
        """Counts something that was left out, and tells of the first for each reason. Whether it was the first."""
        self._metrics.count_ignored(self.kind.plural, reason)
        if reason in self._ignored:
            return False
        self._ignored.add(reason)
        logger.warning("%s is among the %s; it is left out, as others like it will be", message, self.kind.plural)
        return True


def _reason(error: BaseException) -> str:
    """One word for why a list or watch failed."""
    match error:
        case ApiError(status=410):
            return "expired"
        case ApiError():
            return "refused"
        case AnswerTooLongError():
            return "too long"
        case InvalidAnswerError():
            return "invalid"
        case TimeoutError():
            return "silent"
        case _:
            return "broken"


# --- what an object must be ----------------------------------------------------------------------------------------


def version_of(document: Json) -> int:
    """The object's resource version, which grows with every change of the cluster."""
    return int(document["metadata"]["resourceVersion"])


def is_sound(document: Json, kind: Kind, namespace: str | None) -> bool:
    """Whether a document is an object of a kind, and its metadata what the API server makes of it."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or document.get("kind") not in (None, kind.name, "PartialObjectMetadata"):
        return False
    texts = [metadata.get(name) for name in ("name", "namespace", "uid")]
    times_of_life = [metadata[name] for name in ("creationTimestamp", "deletionTimestamp") if name in metadata]
    return (
        all(isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME for text in texts)
        and (namespace is None or metadata["namespace"] == namespace)
        and _is_version(metadata.get("resourceVersion"))
        and type(metadata.get("generation", 0)) is int
        and all(_is_time(time) for time in times_of_life)
        and all(_is_map_of_texts(metadata.get(name, {})) for name in ("labels", "annotations"))
        and _are_owners(metadata.get("ownerReferences", []))
        and all(isinstance(document.get(name, {}), dict) for name in ("spec", "status"))
    )


def _is_version(version: Any) -> bool:
    return isinstance(version, str) and version.isascii() and version.isdecimal() and len(version) <= _LONGEST_VERSION


def _is_time(text: Any) -> bool:
    try:
        times.from_text(text)
    except (TypeError, ValueError):
        return False
    return True


def _is_map_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_owners(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(owner, dict) and isinstance(owner.get("uid", ""), str) for owner in value)
