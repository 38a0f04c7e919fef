"""The operator as a whole: its life, what wakes it, and one pass over a run."""

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from spinrun_api.documents import InvalidDocumentError
from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube.api import TRANSIENT, Api, ApiError
from spinrun_kube.kinds import CHILDREN, JOB, POD, POD_MONITOR, SPIN_RUN, STATEFUL_SET, Kind, kind_of
from spinrun_operator.apply import Applier
from spinrun_operator.backoff import Backoff
from spinrun_operator.clock import SteadyClock
from spinrun_operator.conditions import with_internal_error, with_invalid_spec
from spinrun_operator.documents import ChildDocuments
from spinrun_operator.events import EventRecorder
from spinrun_operator.executor import Executor
from spinrun_operator.follow import Follower
from spinrun_operator.informer import Informer
from spinrun_operator.metrics import Metrics
from spinrun_operator.observe import Observer, progress_target
from spinrun_operator.observed import Refusal
from spinrun_operator.plan import Plan
from spinrun_operator.progress import ProgressPoller
from spinrun_operator.queue import Key, KeyedQueue, Retry
from spinrun_operator.reconcile import is_managed, reconcile
from spinrun_operator.settings import Settings
from spinrun_operator.stall import StallClock
from spinrun_operator.status import current_attempt, is_finished
from spinrun_operator.store import RunStore, key_of

Json = dict[str, Any]

REPORTED_FROM = 3
"""From so many failures of its own on a run, one after the other, the operator tells of them in the run's status."""

LONGEST_RUN_WATCH_SECONDS = 60.0
"""A watch that was opened while the API server took in a changed CRD, as at an upgrade of the chart, may bring bookmarks and no
events until it ends."""

logger = logging.getLogger(__name__)


class Controller:
    """Serves the SpinRuns of the cluster, or of some namespaces."""

    def __init__(self, api: Api, settings: Settings, metrics: Metrics, *, clock: Callable[[], datetime] | None = None) -> None:
        clock = clock or SteadyClock()
        self.queue = KeyedQueue(self._work, workers=settings.workers)
        self._api = api
        self._settings = settings
        self._namespaces: tuple[str | None, ...] = settings.watch_namespaces or (None,)
        self._metrics = metrics
        self._clock = clock
        self._store = RunStore(api)
        self._refusals: dict[Key, tuple[Refusal, ...]] = {}
        self._internal_errors: Counter[Key] = Counter()
        self._starts: dict[Key, float] = {}
        """Since when the status of a run waits for more to tell of its start, by time.monotonic()."""
        self._documents: dict[Key, ChildDocuments] = {}
        self._run_followers: list[Follower] = []
        self._informers: list[Informer] = []
        self._has_started = False
        self.tell: Callable[[str, Json], None] | None = None
        """Who is told of a run that has changed, and then wakes the controller for it; None: it wakes itself."""
        stalls = StallClock()
        self._observer = Observer(api, self._informers, stalls, settings)
        self._applier = Applier(api, self._note_written)
        self._executor = Executor(api, self._store, self._applier, EventRecorder(api), metrics, clock)
        self._poller = ProgressPoller(settings, self.queue.add, stalls, clock=clock)
        metrics.follow_queue(self.queue.depth, self.queue.oldest_seconds)
        metrics.follow_runs(self._store.phases)

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until it is cancelled. Whatever the API server says or does not say, nothing else ends it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._until_served(SPIN_RUN)
                self._run_followers += [
                    Follower(
                        self._api,
                        SPIN_RUN,
                        namespace,
                        _RunsOf(self._store, namespace, self.run_changed),
                        self._settings,
                        self._metrics,
                        longest_watch_seconds=LONGEST_RUN_WATCH_SECONDS,
                    )
                    for namespace in self._namespaces
                ]
                await _start(tasks, self._run_followers)
                # Whose child an object is can only be told once the runs are known.
                has_pod_monitors = self._settings.pod_monitor and await self._is_served(POD_MONITOR)
                # A pod is owned by a Job or a StatefulSet, and comes last.
                kinds = [*CHILDREN, *([POD_MONITOR] if has_pod_monitors else []), POD]
                self._informers += [self._informer(kind, namespace) for kind in kinds for namespace in self._namespaces]
                for is_last in (False, True):
                    await _start(tasks, [each.follower for each in self._informers if (each.kind == POD) is is_last])
                self._has_started = True
                tasks.create_task(self._resync(), name="resync")
                tasks.create_task(self.queue.run(), name="queue")
        finally:
            await self._poller.close()

    def _informer(self, kind: Kind, namespace: str | None) -> Informer:
        owners = self._pod_owners if kind == POD else self._run_owners
        return Informer(
            self._api,
            kind,
            namespace,
            self._settings,
            self._metrics,
            owners=owners,
            on_change=self._child_changed,
            on_gone=self._applier.forget,
        )

    async def _until_served(self, kind: Kind) -> None:
        """Waits until the API server serves a kind: whoever watches one that is not there yet never learns of it."""
        for attempt in itertools.count():
            if await self._is_served(kind):
                return
            if attempt == 0:
                logger.warning("the cluster has no CRD for SpinRuns yet: apply crds/spinrun.dev_spinruns.yaml")
            await asyncio.sleep(1)

    async def _is_served(self, kind: Kind) -> bool:
        """Whether the API server serves a kind, as soon as it answers."""
        backoff = Backoff(healthy_seconds=math.inf)
        while True:
            try:
                return await self._api.has_kind(kind)
            except TRANSIENT as error:
                level = logging.DEBUG if backoff.failures else logging.WARNING
                logger.log(level, "the API server does not say which kinds it serves: %s", error or type(error).__name__)
            await asyncio.sleep(backoff.pause(0.0))

    async def _resync(self) -> None:
        """Looks at everything from time to time: what an event missed, the last list has found."""
        while True:
            for key in self.runs():
                self.queue.add(key)
            await asyncio.sleep(self._settings.resync_seconds)

    @property
    def _followers(self) -> list[Follower]:
        return [*self._run_followers, *(informer.follower for informer in self._informers)]

    def problems(self) -> list[str]:
        """What keeps the operator from working, for the liveness probe."""
        limit, now = self._settings.stuck_seconds, time.monotonic()
        found = [
            f"nothing heard of {each.kind.plural} for {limit:.0f} s{f', {each.trouble}' if each.trouble else ''}"
            for each in self._followers
            if now - each.last_message > limit
        ]
        if (oldest := self.queue.oldest_seconds()) > limit:
            found.append(f"a run has been waiting for {oldest:.0f} s in the queue")
        return found

    def not_ready(self) -> list[str]:
        """What the operator has not seen yet, or not lately, for the readiness probe; empty when it knows what is there."""
        if not self._has_started:
            unseen = [
                f"{each.kind.plural}: still listing{f', {each.trouble}' if each.trouble else ''}"
                for each in self._followers
                if not each.synced.is_set()
            ]
            return unseen or ["still asking which kinds the cluster serves"]
        return [f"{each.kind.plural}: nothing heard lately, {each.trouble}" for each in self._followers if each.is_stale]

    def runs(self) -> list[Key]:
        """The runs that are known."""
        return self._store.keys()

    def run_bodies(self) -> list[Json]:
        """The same, as the API server said them last."""
        return self._store.bodies(None)

    # --- what wakes ------------------------------------------------------------------------------------------------

    def run_changed(self, change: str, body: Json) -> None:
        """A SpinRun was seen.

        Args:
            change: What the API server says of it: DELETED, or anything else.
            body: The run as the API server says it.
        """
        if change == "DELETED":
            self._store.remove(body)
        else:
            is_ours = self._store.is_ours(body)
            if not self._store.put(body) or is_ours:
                return
        if self.tell is None:
            self.wake(key_of(body))
        else:
            self.tell(change, body)

    def wake(self, key: Key) -> None:
        """A pass over this run is wanted."""
        self.queue.add(key)

    def _child_changed(self, key: Key) -> None:
        self.queue.add(key, self._settings.coalesce_seconds)

    def _note_written(self, written: Json) -> None:
        """A child that was just written is known before the watch tells of it."""
        kind = kind_of(written)
        for informer in self._informers:
            if informer.kind == kind and informer.namespace in (None, written["metadata"]["namespace"]):
                informer.put(written)

    # --- whose an object is ----------------------------------------------------------------------------------------

    def _run_owners(self, key: Key) -> Collection[str]:
        """Who may own a child of the run."""
        body = self._store.get(key)
        return () if body is None else (body["metadata"]["uid"],)

    def _pod_owners(self, key: Key) -> Collection[str]:
        """Who may own a pod of the run."""
        makers = (informer for informer in self._informers if informer.kind in (JOB, STATEFUL_SET))
        return {maker["metadata"]["uid"] for informer in makers for maker in informer.of_run(key)}

    # --- one pass --------------------------------------------------------------------------------------------------

    async def _work(self, key: Key) -> float | None:
        """One pass over a run, and its result for the metrics."""
        started, result = time.monotonic(), "error"
        try:
            again = await self._reconcile(key)
            result = "ok"
            self._internal_errors.pop(key, None)
            return again
        except Retry:
            result = "conflict"
            raise
        except ApiError as error:
            raise Retry(str(error), error.retry_after) from error
        except TRANSIENT as error:
            raise Retry(str(error) or type(error).__name__) from error
        except Exception as error:
            await self._note_internal_error(key, error)
            raise
        finally:
            self._metrics.reconcile_seconds.labels(result).observe(time.monotonic() - started)

    async def _note_internal_error(self, key: Key, error: Exception) -> None:
        """Counts a failure that is the operator's own, and tells of it in the run's status when it lasts.

        The queue logs the error and tries again, more and more slowly.
        """
        self._internal_errors[key] += 1
        body = self._store.get(key)
        if body is None or self._internal_errors[key] < REPORTED_FROM:
            return
        try:
            await self._executor.write_status(body, with_internal_error(_status_of(body), error, self._clock()))
        except (Retry, *TRANSIENT) as refusal:
            logger.warning("the status cannot tell of an internal error: %s", refusal or type(refusal))
        except Exception:
            # What is wrong with the run may keep its status from being written too.
            logger.exception("the status cannot tell of an internal error")

    async def _reconcile(self, key: Key) -> float | None:
        """Observes, decides and acts; returns the seconds until it is to be done again even if nothing happens."""
        body = self._store.get(key)
        if body is None:
            self._forget(key)
            return None
        try:
            run = self._store.model(key)
        except InvalidDocumentError as error:
            await self._executor.write_status(body, _invalid_status(body, error, self._clock()))
            return None
        if not is_managed(run):
            self._poller.forget(key)
            return None
        for informer in self._informers:
            if informer.namespace in (None, key[0]):
                await informer.catch_up(key)
        now, refusals = self._clock(), self._refusals.get(key, ())
        observed = await self._observer.observe(run, key, refusals=refusals, progress=self._poller.published(key), now=now)
        plan = reconcile(run, observed, self._settings, now, self._documents_of(key, run))
        patience = self._patience(key, body, plan)
        refused = await self._executor.execute(run, body, observed, plan, is_told=patience is None)
        if plan.delete_run:
            return None
        is_over = is_finished(plan.status)
        self._poller.follow(key, None if is_over else progress_target(run, observed, current_attempt(plan.status)))
        return self._next_look(key, refused, plan.requeue_seconds, patience)

    def _patience(self, key: Key, body: Json, plan: Plan) -> float | None:
        """Seconds that the status may still wait for more to tell; None: it is to be written now, if it says anything new."""
        if not plan.only_starts or plan.status.to_document() == body.get("status"):
            self._starts.pop(key, None)
            return None
        now = time.monotonic()
        left = self._starts.setdefault(key, now) + self._settings.starting_seconds - now
        if left > 0:
            return left
        del self._starts[key]
        return None

    def _documents_of(self, key: Key, run: SpinRun) -> ChildDocuments:
        """The run's children as they should be, made once for a generation."""
        known = self._documents.get(key)
        if known is None or not known.are_of(run):
            known = self._documents[key] = ChildDocuments(run, self._settings)
        return known

    def _next_look(self, key: Key, refusals: tuple[Refusal, ...], *moments: float | None) -> float | None:
        """At once when the status must speak of other refusals than before; in a while when there are any."""
        changed = refusals != self._refusals.get(key, ())
        if refusals:
            self._refusals[key] = refusals
        else:
            self._refusals.pop(key, None)
        if changed:
            return 0.0
        trouble = self._settings.trouble_seconds if refusals else None
        return min((wait for wait in (*moments, trouble) if wait is not None), default=None)

    def _forget(self, key: Key) -> None:
        self._poller.forget(key)
        self._observer.forget(key)
        self._refusals.pop(key, None)
        self._starts.pop(key, None)
        self._internal_errors.pop(key, None)
        self._documents.pop(key, None)
        self.queue.forget(key)


def _invalid_status(body: Json, error: InvalidDocumentError, now: datetime) -> SpinRunStatus:
    """For a spec that the API server took and this operator does not understand: one of them is of another version."""
    return with_invalid_spec(_status_of(body), error, body["metadata"].get("generation"), now)


def _status_of(body: Json) -> SpinRunStatus:
    """The status of a run that cannot be read as a whole, as far as it can be read."""
    try:
        return SpinRunStatus.model_validate(body.get("status") or {})
    except ValueError:
        return SpinRunStatus()


async def _start(tasks: asyncio.TaskGroup, followers: list[Follower]) -> None:
    """Starts to follow, and waits until everything that is there has been seen."""
    for follower in followers:
        tasks.create_task(follower.run(), name=f"watch {follower.kind.plural}")
    for follower in followers:
        await follower.synced.wait()


@dataclass(frozen=True)
class _RunsOf:
    """The runs of a namespace, or of all, as a copy that is kept."""

    store: RunStore
    namespace: str | None
    changed: Callable[[str, Json], None]

    def take(self, change: str, document: Json) -> None:
        self.changed(change, document)

    def wants(self, document: Json) -> bool:
        return self.store.is_news(document)

    def known(self) -> list[Json]:
        return self.store.bodies(self.namespace)
