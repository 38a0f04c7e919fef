"""Gathering what a reconcile must know: from the informers' copies, and by requests only where something puzzles."""

import asyncio
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
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
    Notice,
    Observed,
    Refusal,
    TrainerProgress,
    child_id,
    has_ended,
    is_deleted,
    is_over,
)
from spinrun_operator.progress import Target
from spinrun_operator.queue import Key
from spinrun_operator.settings import Settings
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

    def __init__(self, api: Api, informers: list[Informer], settings: Settings) -> None:
        self._api = api
        self._informers = informers
        self._settings = settings
        self._warnings: dict[str, _FetchedWarnings] = defaultdict(_FetchedWarnings)

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
            pods=tuple(sorted(_own(run, pods), key=lambda pod: pod["metadata"]["name"])),
            refusals=refusals,
            progress=progress,
            new_token=secrets.token_urlsafe(32),
            has_pod_monitors=any(informer.kind == POD_MONITOR for informer in self._informers),
        )
        if job_is_ahead_of_its_pods(run, observed):
            observed = replace(observed, pods=await self._newest_pods(run, observed))
        puzzling = trouble.puzzling(run, observed, now)
        if not puzzling:
            return observed
        warnings = await self._warnings_of(names.namespace(run))
        notices = [notice for each in puzzling for notice in newest_notice(each, warnings.get(each["metadata"]["uid"], []), now)]
        return replace(observed, notices=tuple(notices))

    async def _newest_pods(self, run: SpinRun, observed: Observed) -> tuple[Json, ...]:
        """The run's pods, those of the attempt as the API server has them now."""
        attempt = current_attempt(run.status or SpinRunStatus())
        labels = f"{names.UID_LABEL}={run.metadata.uid},{names.ATTEMPT_LABEL}={attempt}"
        newest, _ = await self._api.list(POD, names.namespace(run), labels=labels, keep=lambda pod: slim(pod, POD))
        lagging = observed.attempt_pods(attempt)
        return (*(pod for pod in observed.pods if pod not in lagging), *newest)

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


def _own(run: SpinRun, pods: Iterable[Json]) -> list[Json]:
    """The run's pods, without those of a run of the same name before it."""
    return [pod for pod in pods if pod["metadata"]["labels"].get(names.UID_LABEL) == run.metadata.uid]


def job_is_ahead_of_its_pods(run: SpinRun, observed: Observed) -> bool:
    """Whether the attempt's Job has been seen to end, but not all of its pods, which tell why.

    Each kind has a watch of its own, so that news of one may come before older news of the other.
    """
    status = run.status or SpinRunStatus()
    attempt = current_attempt(status)
    job = observed.own_child(run, "Job", names.job_name(run, attempt))
    if is_finished(status) or job is None or not has_ended(job):
        return False
    pods = observed.attempt_pods(attempt)
    return not pods or not all(map(is_over, pods))


def newest_notice(document: Json, events: list[Json], now: datetime) -> list[Notice]:
    """What the newest event that tells of trouble says, unless it is old."""
    telling = [event for event in events if event.get("reason") in trouble.NOTICES]
    newest = max(telling, key=_time_of, default=None)
    if newest is None or now - _time_of(newest) > timedelta(seconds=OLD_EVENT_SECONDS):
        return []
    # A controller that tries again gives each pod another name: the same news must stay the same text.
    message = re.sub(r'\bpods? "[^"]*"', "pods", newest.get("message", ""))
    return [Notice(child_id(document), newest["reason"], message)]


def _time_of(event: Json) -> datetime:
    return times.from_text(times.of_event(event))


def progress_target(run: SpinRun, observed: Observed, attempt: int) -> Target | None:
    """The running pod of rank 0, which can be asked; None while there is none."""
    for pod in observed.attempt_pods(attempt):
        status = pod.get("status", {})
        index = pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION)
        if index == "0" and status.get("phase") == "Running" and status.get("podIP") and not is_deleted(pod):
            return Target(status["podIP"], run.metadata.uid or "", attempt)
    return None
