"""Gathering what a reconcile must know: from the informers' copies, and by requests only where something puzzles."""

import asyncio
import re
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube import names, times
from spinrun_kube.api import Api
from spinrun_kube.kinds import EVENT, POD, POD_MONITOR
from spinrun_operator import trouble
from spinrun_operator.informer import Informer, slim
from spinrun_operator.observed import (
    INDEX_ANNOTATION,
    ChildId,
    Notice,
    Observed,
    Refusal,
    TrainerProgress,
    child_id,
    has_ended,
    is_deleted,
    is_over,
    own_controllers,
)
from spinrun_operator.progress import Target
from spinrun_operator.queue import Key
from spinrun_operator.settings import Settings
from spinrun_operator.stall import StallClock, seen_of_pods
from spinrun_operator.status import current_attempt, is_finished

Json = dict[str, Any]

OLD_EVENT_SECONDS = 600
"""Events of trouble are repeated while it lasts: an older one tells of what is over."""

MOST_WARNINGS = 1000
"""Of a namespace, the newest."""
MESSAGE_LIMIT = 1000
"""Characters of an event's message."""

# The scheduler's are in the pods' conditions too, and by far the most.
_OTHERS_WARNINGS = "type=Warning,involvedObject.kind!=SpinRun,reason!=FailedScheduling"


@dataclass
class _FetchedWarnings:
    """The warnings of a namespace, as of their last request."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    fetched: float = float("-inf")
    by_uid: dict[str, list[Json]] = field(default_factory=dict[str, list[Json]])


class Observer:
    """Sees the children of runs."""

    def __init__(self, api: Api, informers: list[Informer], stalls: StallClock, settings: Settings) -> None:
        self._api = api
        self._informers = informers
        self._stalls = stalls
        self._settings = settings
        self._warnings: dict[str, _FetchedWarnings] = defaultdict(_FetchedWarnings)
        self._controllers: dict[Key, tuple[str, dict[str, ChildId]]] = {}
        """Of each run its uid, and the Jobs and StatefulSets that it has or that pods of theirs have outlived, by uid."""

    async def observe(
        self, run: SpinRun, key: Key, *, refusals: tuple[Refusal, ...], progress: TrainerProgress | None, now: datetime
    ) -> Observed:
        """All that is known of the run's children. Raises one of TRANSIENT."""
        children: dict[tuple[str, str], Json] = {}
        pods: list[Json] = []
        for informer in self._informers:
            if informer.kind == POD:
                pods += informer.of_run(key)
            else:
                children |= {child_id(document): document for document in informer.of_run(key)}
        observed = Observed(
            children=children,
            pods=tuple(sorted(pods, key=lambda pod: pod["metadata"]["name"])),
            former_controllers=self._former_controllers(run, key, children, pods),
            refusals=refusals,
            progress=progress,
            new_token=secrets.token_urlsafe(32),
            has_pod_monitors=any(informer.kind == POD_MONITOR for informer in self._informers),
        )
        if job_is_ahead_of_its_pods(run, observed):
            observed = replace(observed, pods=await self._newest_pods(run, observed))
        observed = replace(observed, stalled_seconds=self._stalled_seconds(run, key, observed))
        puzzling = trouble.puzzling(run, observed, now)
        if not puzzling:
            return observed
        warnings = await self._warnings_of(names.namespace(run))
        notices = [notice for each in puzzling for notice in newest_notice(each, warnings.get(each["metadata"]["uid"], []), now)]
        return replace(observed, notices=tuple(notices))

    def _stalled_seconds(self, run: SpinRun, key: Key, observed: Observed) -> float | None:
        """How long the attempt has not got any further, for a run that asks for it."""
        status = run.status or SpinRunStatus()
        asked = run.spec.lifecycle.progress_deadline_seconds is not None and not is_finished(status)
        seen = seen_of_pods(run, observed, current_attempt(status)) if asked else None
        if seen is None:
            self._stalls.forget(key)
            return None
        self._stalls.note(key, "pods", seen)
        return self._stalls.seconds(key)

    async def _newest_pods(self, run: SpinRun, observed: Observed) -> tuple[Json, ...]:
        """The run's pods, those of the attempt as the API server has them now."""
        attempt = current_attempt(run.status or SpinRunStatus())
        labels = f"{names.UID_LABEL}={run.metadata.uid},{names.ATTEMPT_LABEL}={attempt}"
        newest, _ = await self._api.list(POD, names.namespace(run), labels=labels, keep=lambda pod: slim(pod, POD))
        asked = {pod["metadata"]["name"] for pod in (*newest, *observed.attempt_pods(run, attempt))}
        return (*(pod for pod in observed.pods if pod["metadata"]["name"] not in asked), *newest)

    def _former_controllers(self, run: SpinRun, key: Key, children: dict[ChildId, Json], pods: list[Json]) -> dict[str, ChildId]:
        """Jobs and StatefulSets of the run that are gone, while their pods are not: somebody deleted them in the background.

        Only this operator's memory says whose such pods are. One that starts in such a moment takes them for a stranger's, and
        the ledger refuses the trainer among them as soon as a newer attempt owns it.
        """
        uid, known = self._controllers.get(key, ("", {}))
        present = own_controllers(run, children)
        known = known | present if uid == run.metadata.uid else present
        with_pods = {controller["uid"] for pod in pods if (controller := names.controller_of(pod))}
        known = {uid: child for uid, child in known.items() if uid in present or uid in with_pods}
        self._controllers[key] = (run.metadata.uid or "", known)
        return {uid: child for uid, child in known.items() if uid not in present}

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._controllers.pop(key, None)
        self._stalls.forget(key)

    async def _warnings_of(self, namespace: str) -> dict[str, list[Json]]:
        """The namespace's warning events by the uid of what they are about. Asked once in a while for all runs of a namespace:
        the API server looks through all of its events for every question."""
        known = self._warnings[namespace]
        async with known.lock:
            if time.monotonic() - known.fetched >= self._settings.trouble_seconds:
                events, _ = await self._api.list(EVENT, namespace, fields=_OTHERS_WARNINGS, keep=_telling)
                known.by_uid = defaultdict(list)
                for event in sorted(events, key=_time_of)[-MOST_WARNINGS:]:
                    known.by_uid[event["involvedObject"]["uid"]].append(event)
                known.fetched = time.monotonic()
            return known.by_uid


def _telling(event: Json) -> Json | None:
    """Of an event that tells of trouble, what is read here."""
    if event.get("reason") not in trouble.NOTICES:
        return None
    times_of = {name: event[name] for name in ("lastTimestamp", "eventTime") if event.get(name)}
    about = {"uid": event.get("involvedObject", {}).get("uid", "")}
    message = (event.get("message") or "")[:MESSAGE_LIMIT]
    metadata = {"creationTimestamp": event["metadata"]["creationTimestamp"]}
    return {"metadata": metadata, "involvedObject": about, "reason": event["reason"], "message": message, **times_of}


def job_is_ahead_of_its_pods(run: SpinRun, observed: Observed) -> bool:
    """Whether the attempt's Job has been seen to end, but not all of its pods, which tell why.

    Each kind has a watch of its own, so that news of one may come before older news of the other.
    """
    status = run.status or SpinRunStatus()
    attempt = current_attempt(status)
    job = observed.own_child(run, "Job", names.job_name(run, attempt))
    if is_finished(status) or job is None or not has_ended(job):
        return False
    pods = observed.attempt_pods(run, attempt)
    return not pods or not all(map(is_over, pods))


def newest_notice(document: Json, events: list[Json], now: datetime) -> list[Notice]:
    """What the newest event that tells of trouble says, unless it is old."""
    old = timedelta(seconds=OLD_EVENT_SECONDS)
    telling = [event for event in events if event.get("reason") in trouble.NOTICES]
    # One from far ahead of our clock would hide all others.
    newest = max((event for event in telling if abs(now - _time_of(event)) <= old), key=_time_of, default=None)
    if newest is None:
        return []
    # A controller that tries again gives each pod another name: the same news must stay the same text.
    message = re.sub(r'\bpods? "[^"]*"', "pods", newest.get("message") or "")
    return [Notice(child_id(document), newest["reason"], message)]


def _time_of(event: Json) -> datetime:
    """When the event was last seen; long ago where it does not say that in Kubernetes' way."""
    try:
        return times.from_text(times.of_event(event))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def progress_target(run: SpinRun, observed: Observed, attempt: int) -> Target | None:
    """The running pod of rank 0, which can be asked; None while there is none."""
    for pod in observed.attempt_pods(run, attempt):
        status = pod.get("status", {})
        index = pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION)
        if index == "0" and status.get("phase") == "Running" and status.get("podIP") and not is_deleted(pod):
            return Target(status["podIP"], run.metadata.uid or "", attempt)
    return None
