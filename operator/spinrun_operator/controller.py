"""The operator as a whole: its life, what wakes it, and one pass over a run."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from spinrun_api.documents import InvalidDocumentError, parse_stored_run
from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube import times
from spinrun_kube.api import TRANSIENT, Api, ApiError
from spinrun_kube.kinds import CHILDREN, POD, POD_MONITOR, SPIN_RUN, kind_of
from spinrun_operator.apply import Applier
from spinrun_operator.conditions import with_internal_error, with_invalid_spec
from spinrun_operator.documents import ChildDocuments
from spinrun_operator.events import EventRecorder
from spinrun_operator.executor import Executor
from spinrun_operator.informer import Informer
from spinrun_operator.metrics import Metrics
from spinrun_operator.observe import Observer, progress_target
from spinrun_operator.observed import Refusal
from spinrun_operator.progress import ProgressPoller
from spinrun_operator.queue import Key, KeyedQueue, Retry
from spinrun_operator.reconcile import is_managed, reconcile
from spinrun_operator.settings import Settings
from spinrun_operator.stall import StallClock
from spinrun_operator.status import current_attempt, is_finished
from spinrun_operator.store import RunStore, key_of

Json = dict[str, Any]
Result = TypeVar("Result")

REPORTED_FROM = 3
"""From so many failures of its own on a run, one after the other, the operator tells of them in the run's status."""

logger = logging.getLogger(__name__)


class Controller:
    """Serves the SpinRuns of the cluster, or of some namespaces."""

    def __init__(self, api: Api, settings: Settings, metrics: Metrics, *, clock: Callable[[], datetime] = times.utc_now) -> None:
        self.queue = KeyedQueue(self._work, workers=settings.workers)
        self._api = api
        self._settings = settings
        self._namespaces: tuple[str | None, ...] = settings.watch_namespaces or (None,)
        self._metrics = metrics
        self._clock = clock
        self._store = RunStore(api)
        self._refusals: dict[Key, tuple[Refusal, ...]] = {}
        self._internal_errors: Counter[Key] = Counter()
        self._documents: dict[Key, ChildDocuments] = {}
        self._informers: list[Informer] = []
        stalls = StallClock()
        self._observer = Observer(api, self._informers, stalls, settings)
        self._applier = Applier(api, self._note_written)
        self._executor = Executor(api, self._store, self._applier, EventRecorder(api), metrics, clock)
        self._poller = ProgressPoller(settings, self.queue.add, stalls)
        metrics.follow_queue(self.queue.depth, self.queue.oldest_seconds)
        metrics.follow_runs(self._store.phases)

    # --- life ------------------------------------------------------------------------------------------------------

    async def wait_for_crd(self) -> None:
        """Waits until the API server serves SpinRuns: whoever watches a kind that is not there yet never learns of it."""
        for attempt in itertools.count():
            if await _until_answered(lambda: self._api.has_kind(SPIN_RUN)):
                return
            if attempt == 0:
                logger.warning("the cluster has no CRD for SpinRuns yet: apply crds/spinrun.dev_spinruns.yaml")
            await asyncio.sleep(1)

    async def run(self) -> None:
        """Serves until it is cancelled."""
        try:
            kinds = [POD, *CHILDREN]
            if self._settings.pod_monitor and await _until_answered(lambda: self._api.has_kind(POD_MONITOR)):
                kinds.append(POD_MONITOR)
            self._informers += [
                Informer(self._api, kind, namespace, self._settings, self._child_changed, self._applier.forget)
                for kind in kinds
                for namespace in self._namespaces
            ]
            async with asyncio.TaskGroup() as tasks:
                for informer in self._informers:
                    tasks.create_task(informer.run(), name=f"watch {informer.kind.plural}")
                for informer in self._informers:
                    await informer.synced.wait()
                tasks.create_task(self._resync(), name="resync")
                tasks.create_task(self.queue.run(), name="queue")
        finally:
            await self._poller.close()

    async def _resync(self) -> None:
        """Looks at everything from time to time: what an event missed is found here."""
        while True:
            try:
                for namespace in self._namespaces:
                    for key in await self._store.list_again(namespace):
                        self.queue.add(key)
            except TRANSIENT as error:
                logger.warning("listing SpinRuns: %s", error or type(error))
                await asyncio.sleep(1)
                continue
            await asyncio.sleep(self._settings.resync_seconds)

    def problems(self) -> list[str]:
        """What keeps the operator from working, for the liveness probe."""
        limit, now = self._settings.stuck_seconds, time.monotonic()
        silent = [informer.kind.plural for informer in self._informers if now - informer.last_message > limit]
        found = [f"nothing heard of {plural} for {limit:.0f} s" for plural in silent]
        if (oldest := self.queue.oldest_seconds()) > limit:
            found.append(f"a run has been waiting for {oldest:.0f} s in the queue")
        return found

    def is_ready(self) -> bool:
        """Whether everything that is there has been seen."""
        return bool(self._informers) and all(informer.synced.is_set() for informer in self._informers)

    def runs(self) -> list[Key]:
        """The runs that are known."""
        return self._store.keys()

    # --- what wakes ------------------------------------------------------------------------------------------------

    def run_changed(self, change: str | None, body: Json) -> None:
        """A SpinRun was seen.

        Args:
            change: What the watch says of it: DELETED, or anything else.
            body: The run as the API server says it.
        """
        if change == "DELETED":
            self._store.remove(body)
            self.queue.add(key_of(body))
        elif self._store.put(body):
            self.queue.add(key_of(body))

    def _child_changed(self, key: Key) -> None:
        self.queue.add(key, self._settings.coalesce_seconds)

    def _note_written(self, written: Json) -> None:
        """A child that was just written is known before the watch tells of it."""
        kind = kind_of(written)
        for informer in self._informers:
            if informer.kind == kind and informer.namespace in (None, written["metadata"]["namespace"]):
                informer.put(written)

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
            if (problem := self._store.problem(key)) is not None:
                raise InvalidDocumentError("the run", [problem])
            run = parse_stored_run(body)
        except InvalidDocumentError as error:
            await self._executor.write_status(body, _invalid_status(body, error, self._clock()))
            return None
        if not is_managed(run):
            self._poller.forget(key)
            return None
        now, refusals = self._clock(), self._refusals.get(key, ())
        observed = await self._observer.observe(run, key, refusals=refusals, progress=self._poller.published(key), now=now)
        plan = reconcile(run, observed, self._settings, now, self._documents_of(key, run))
        refused = await self._executor.execute(run, body, observed, plan)
        if plan.delete_run:
            return None
        is_over = is_finished(plan.status)
        self._poller.follow(key, None if is_over else progress_target(run, observed, current_attempt(plan.status)))
        return self._next_look(key, refused, plan.requeue_seconds)

    def _documents_of(self, key: Key, run: SpinRun) -> ChildDocuments:
        """The run's children as they should be, made once for a generation."""
        known = self._documents.get(key)
        if known is None or not known.are_of(run):
            known = self._documents[key] = ChildDocuments(run, self._settings)
        return known

    def _next_look(self, key: Key, refusals: tuple[Refusal, ...], wanted: float | None) -> float | None:
        """At once when the status must speak of other refusals than before; in a while when there are any."""
        changed = refusals != self._refusals.get(key, ())
        if refusals:
            self._refusals[key] = refusals
        else:
            self._refusals.pop(key, None)
        if changed:
            return 0.0
        patience = self._settings.trouble_seconds if refusals else None
        return min((wait for wait in (wanted, patience) if wait is not None), default=None)

    def _forget(self, key: Key) -> None:
        self._poller.forget(key)
        self._observer.forget(key)
        self._refusals.pop(key, None)
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


async def _until_answered(call: Callable[[], Awaitable[Result]]) -> Result:
    """What the API server answers, however long that takes."""
    while True:
        try:
            return await call()
        except TRANSIENT as error:
            logger.warning("the API server does not answer: %s", error or type(error))
            await asyncio.sleep(1)
