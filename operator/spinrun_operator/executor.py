"""Carrying out what was decided: the status first, then the children, then the Events."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_kube.api import Api, ApiError
from spinrun_operator.apply import Applier
from spinrun_operator.events import EventRecorder
from spinrun_operator.follow import version_of
from spinrun_operator.metrics import Metrics
from spinrun_operator.observed import Observed, Refusal, child_id, makes_pods
from spinrun_operator.plan import Plan
from spinrun_operator.queue import Key, Retry
from spinrun_operator.store import RunStore, key_of

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Executor:
    """Writes what plans say. Whatever has changed since it was read is not written over: it raises Retry."""

    def __init__(
        self,
        api: Api,
        store: RunStore,
        applier: Applier,
        recorder: EventRecorder,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._store = store
        self._applier = applier
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock

    async def execute(
        self, run: SpinRun, body: Json, observed: Observed, plan: Plan, *, is_told: bool = True
    ) -> tuple[Refusal, ...]:
        """Does what the plan says, in its order.

        Args:
            run: The run.
            body: The same as the API server said it.
            observed: What was seen when the plan was made.
            plan: What to do.
            is_told: Whether the status is written, and the Events with it; else they wait for another pass.

        Returns:
            The children that cannot be as they should.

        Raises:
            Retry: The run or one of its children has changed meanwhile.
            TRANSIENT: One of these: the API server cannot do it now.
        """
        if plan.delete_run:
            await self._delete(key_of(body), body, "Background")
            return ()
        events = plan.events if is_told else []
        if is_told:
            await self.write_status(body, plan.status)
        for event in events:
            self._metrics.count_attempt_end(event.reason)
        refusals: list[Refusal] = []
        for child in plan.apply:
            # Pods are only made when all that they mount is the run's own.
            if not (refusals and makes_pods(child) and child_id(child) not in observed.children):
                refusals += await self._apply(run, key_of(body), observed, child)
        for child in plan.delete:
            await self._delete(key_of(body), child, "Foreground")
        for event in events:
            await self._recorder.record(run, event, self._clock())
        return tuple(refusals)

    async def write_status(self, body: Json, wanted: SpinRunStatus) -> None:
        """Writes the status when it differs.

        Raises:
            Retry: The run has changed since it was read.
        """
        document = wanted.to_document()
        if document == body.get("status"):
            return
        try:
            # Of the rest the API server takes nothing from here, and the spec may be large.
            metadata = {name: body["metadata"].get(name) for name in ("name", "namespace", "uid", "resourceVersion")}
            written = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata, "status": document}
            with self._store.writing(key_of(body), document):
                self._store.put(await self._api.replace_status(written))
        except ApiError as error:
            if error.status in (404, 409):
                await self._store.refresh(key_of(body))
                raise Retry(f"the run has changed: {error.message}") from error
            namespace, run = key_of(body)
            logger.warning("the status cannot be written: %s", error, extra={"namespace": namespace, "run": run})
            raise

    async def _apply(self, run: SpinRun, key: Key, observed: Observed, child: Json) -> list[Refusal]:
        """Why the child cannot be as wanted; empty when it is."""
        if child["kind"] == "Job":
            await self._assert_fresh(key)
        which = child_id(child)
        was_refused = any(refusal.child == which for refusal in observed.refusals)
        try:
            refusal = await self._applier.apply(run, child, observed.children.get(which), was_refused=was_refused)
        except ApiError as error:
            if error.status == 409:
                raise Retry(f"{child['kind']} {child['metadata']['name']} has changed: {error.message}") from error
            raise
        return [refusal] if refusal else []

    async def _assert_fresh(self, key: Key) -> None:
        """An attempt is only made from the newest status: another operator may have numbered the next. Raises Retry."""
        known = self._store.get(key)
        await self._store.refresh(key)
        current = self._store.get(key)
        if known is None or current is None or version_of(current) != version_of(known):
            raise Retry("the run has changed", delay=0.0)

    async def _delete(self, key: Key, document: Json, propagation: str) -> None:
        try:
            await self._api.delete(document, propagation=propagation)
        except ApiError as error:
            if error.status == 409:
                await self._store.refresh(key)
                raise Retry(f"{document['kind']} {document['metadata']['name']} has changed: {error.message}") from error
            raise
