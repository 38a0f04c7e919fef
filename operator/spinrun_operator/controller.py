"""The operator as a whole: what it knows, the queue, and one pass over a run."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from spinrun_api.documents import InvalidDocumentError, parse_stored_run
from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube import times
from spinrun_kube.kinds import CHILDREN, POD, POD_MONITOR, SPIN_RUN, kind_of
from spinrun_operator import status
from spinrun_operator.api import TRANSIENT, Api, ApiError
from spinrun_operator.apply import Applier
from spinrun_operator.events import EventRecorder
from spinrun_operator.informer import Informer, version_of
from spinrun_operator.metrics import Metrics
from spinrun_operator.observe import Observer, progress_target
from spinrun_operator.observed import Observed, Refusal, child_id
from spinrun_operator.progress import ProgressPoller
from spinrun_operator.queue import Key, KeyedQueue, Retry
from spinrun_operator.reconcile import Plan, is_managed, reconcile
from spinrun_operator.settings import Settings

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Controller:
    """Serves the SpinRuns of the cluster, or of some namespaces."""

    def __init__(self, api: Api, settings: Settings, metrics: Metrics, *, clock: Callable[[], datetime] = times.utc_now) -> None:
        self.queue = KeyedQueue(self._work, workers=settings.workers)
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._runs: dict[Key, Json] = {}
        self._refusals: dict[Key, tuple[Refusal, ...]] = {}
        self._informers: list[Informer] = []
        self._observer = Observer(api, self._informers, settings)
        self._applier = Applier(api, self._remember)
        self._recorder = EventRecorder(api)
        self._poller = ProgressPoller(settings, self.queue.add)
        self._started = time.monotonic()
        metrics.follow_queue(self.queue.depth, self.queue.oldest_seconds)
        metrics.follow_runs(lambda: [(*key, body.get("status", {}).get("phase", "Unknown")) for key, body in self._runs.items()])

    # --- life ------------------------------------------------------------------------------------------------------

    async def wait_for_crd(self) -> None:
        """Waits until the API server serves SpinRuns: whoever watches a kind that is not there yet never hears of it."""
        for attempt in itertools.count():
            if await self._retry_forever(lambda: self._api.has_kind(SPIN_RUN)):
                return
            if attempt == 0:
                logger.warning("the cluster has no CRD for SpinRuns yet: apply crds/spinrun.dev_spinruns.yaml")
            await asyncio.sleep(1)

    async def run(self) -> None:
        """Serves until it is cancelled."""
        try:
            self._observer.has_pod_monitors = self._settings.pod_monitor and await self._retry_forever(
                lambda: self._api.has_kind(POD_MONITOR)
            )
            kinds = [POD, *CHILDREN, *([POD_MONITOR] if self._observer.has_pod_monitors else [])]
            self._informers += [
                Informer(self._api, kind, namespace, self._settings, self._child_changed, self._applier.forget)
                for kind in kinds
                for namespace in self._namespaces()
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

    def _namespaces(self) -> tuple[str | None, ...]:
        return self._settings.watch_namespaces or (None,)

    async def _retry_forever(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return await call()
            except TRANSIENT as error:
                logger.warning("the API server does not answer: %s", error or type(error))
                await asyncio.sleep(1)

    async def _resync(self) -> None:
        """Looks at everything from time to time: what an event missed is found here."""
        while True:
            try:
                await self._list_runs()
            except TRANSIENT as error:
                logger.warning("listing SpinRuns: %s", error or type(error))
                await asyncio.sleep(1)
                continue
            await asyncio.sleep(self._settings.resync_seconds)

    async def _list_runs(self) -> None:
        for namespace in self._namespaces():
            items, version = await self._api.list(SPIN_RUN, namespace)
            present = {_key(item) for item in items}
            for key, known in list(self._runs.items()):
                if namespace in (None, key[0]) and key not in present and version_of(known) <= int(version):
                    del self._runs[key]
                    self.queue.add(key)
            for item in items:
                self._put(item)
                self.queue.add(_key(item))

    def problems(self) -> list[str]:
        """What keeps the operator from working, for the liveness probe."""
        limit, now = self._settings.stuck_seconds, time.monotonic()
        silent = [informer.kind.plural for informer in self._informers if now - informer.heard > limit]
        found = [f"nothing heard of {plural} for {limit:.0f} s" for plural in silent]
        if (oldest := self.queue.oldest_seconds()) > limit:
            found.append(f"a run waits for {oldest:.0f} s in the queue")
        return found

    def is_ready(self) -> bool:
        """Whether everything that is there has been seen."""
        return bool(self._informers) and all(informer.synced.is_set() for informer in self._informers)

    def runs(self) -> list[Key]:
        """The runs that are known."""
        return list(self._runs)

    # --- what wakes ------------------------------------------------------------------------------------------------

    def run_changed(self, change: str | None, body: Json) -> None:
        """A SpinRun was seen. change: DELETED, or anything else."""
        key = _key(body)
        if change == "DELETED":
            known = self._runs.get(key)
            if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
                del self._runs[key]
            self.queue.add(key)
        elif self._put(body):
            self.queue.add(key)

    def _child_changed(self, key: Key) -> None:
        self.queue.add(key, self._settings.coalesce_seconds)

    def _put(self, body: Json) -> bool:
        """Takes a SpinRun in, unless it is older than what is known. Whether it was news."""
        key = _key(body)
        known = self._runs.get(key)
        if known is not None and version_of(known) >= version_of(body):
            return False
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        self._runs[key] = {**body, "metadata": metadata}
        return True

    def _remember(self, written: Json) -> None:
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
            again = await self._pass(key)
            result = "ok"
            return again
        except Retry:
            result = "conflict"
            raise
        except ApiError as error:
            raise Retry(str(error), error.retry_after) from error
        except TRANSIENT as error:
            raise Retry(str(error) or type(error).__name__) from error
        finally:
            self._metrics.reconcile_seconds.labels(result).observe(time.monotonic() - started)

    async def _pass(self, key: Key) -> float | None:
        body = self._runs.get(key)
        if body is None:
            self._forget(key)
            return None
        try:
            run = parse_stored_run(body)
        except InvalidDocumentError as error:
            return await self._refuse(key, body, error)
        if not is_managed(run):
            self._poller.forget(key)
            return None
        now = self._clock()
        refusals = self._refusals.get(key, ())
        observed = await self._observer.observe(run, key, refusals=refusals, progress=self._poller.published(key), now=now)
        plan = reconcile(run, observed, self._settings, now)
        return await self._execute(key, run, body, observed, plan)

    async def _execute(self, key: Key, run: SpinRun, body: Json, observed: Observed, plan: Plan) -> float | None:
        """Does what the plan says, in its order."""
        if plan.delete_run:
            await self._delete(key, body, "Background")
            return None
        await self._write_status(key, body, plan.status)
        for event in plan.events:
            self._metrics.happened(event.reason)
        refusals: list[Refusal] = []
        for child in plan.apply:
            # Pods are only made when all that they mount is the run's own.
            if not (refusals and _makes_pods(child) and child_id(child) not in observed.children):
                refusals += await self._apply(key, run, observed, child)
        for child in plan.delete:
            await self._delete(key, child, "Foreground")
        for event in plan.events:
            await self._recorder.tell(run, event, self._clock())
        finished = status.is_finished(plan.status)
        self._poller.follow(key, None if finished else progress_target(run, observed, status.current_attempt(plan.status)))
        return self._next_look(key, tuple(refusals), plan.requeue_seconds)

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

    async def _write_status(self, key: Key, body: Json, wanted: SpinRunStatus) -> None:
        """Writes the status when it differs. Raises Retry when the run has changed since it was read."""
        document = wanted.to_document()
        if document == body.get("status"):
            return
        try:
            self._put(await self._api.replace_status({**body, "status": document}))
        except ApiError as error:
            if error.status in (404, 409):
                await self._refresh(key)
                raise Retry(f"the run has changed: {error.message}") from error
            raise

    async def _apply(self, key: Key, run: SpinRun, observed: Observed, child: Json) -> list[Refusal]:
        """Why the child cannot be as wanted; empty when it is."""
        if child["kind"] == "Job":
            await self._assert_fresh(key)
        live = observed.children.get(child_id(child))
        try:
            refusal = await self._applier.apply(run, child, live)
            return [refusal] if refusal else []
        except ApiError as error:
            if error.status == 409:
                raise Retry(f"{child['kind']} {child['metadata']['name']} has changed: {error.message}") from error
            raise

    async def _assert_fresh(self, key: Key) -> None:
        """An attempt is only made from the newest status: another operator may have counted on. Raises Retry."""
        known = self._runs[key]
        await self._refresh(key)
        current = self._runs.get(key)
        if current is None or version_of(current) != version_of(known):
            raise Retry("the run has changed", delay=0.0)

    async def _refresh(self, key: Key) -> None:
        """Reads the run anew."""
        body = await self._api.get(SPIN_RUN, *key)
        if body is None:
            self._runs.pop(key, None)
        else:
            self._put(body)

    async def _delete(self, key: Key, document: Json, propagation: str) -> None:
        try:
            await self._api.delete(document, propagation=propagation)
        except ApiError as error:
            if error.status == 409:
                await self._refresh(key)
                raise Retry(f"{document['kind']} {document['metadata']['name']} has changed: {error.message}") from error
            raise

    async def _refuse(self, key: Key, body: Json, error: InvalidDocumentError) -> None:
        """A spec that the API server took and this operator does not understand: another version made the one or the other."""
        before = SpinRunStatus()
        with contextlib.suppress(ValueError):
            before = SpinRunStatus.model_validate(body.get("status") or {})
        await self._write_status(key, body, status.invalid(before, error, body["metadata"].get("generation"), self._clock()))

    def _forget(self, key: Key) -> None:
        self._poller.forget(key)
        self._refusals.pop(key, None)
        self.queue.forget(key)


def _makes_pods(child: Json) -> bool:
    return child["kind"] in ("StatefulSet", "Job")


def _key(body: Json) -> Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]
