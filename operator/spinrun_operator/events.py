"""Recording what happened as Events: the same news again raises a count instead of making another Event."""

import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from spinrun_api.run import API_VERSION, KIND, SpinRun
from spinrun_kube import names, times
from spinrun_kube.api import TRANSIENT, Api
from spinrun_operator.plan import Event
from spinrun_protocol.logs import facts_of

MAX_RECORDED = 2048
QUIET_SECONDS = 30.0
"""The same news within this time of the last is not written down again."""
MESSAGE_LIMIT = 1024

logger = logging.getLogger(__name__)


@dataclass
class _Recorded:
    """An Event that was written."""

    name: str
    count: int
    at: float


class EventRecorder:
    """Writes Events about runs. Losing one harms nobody: it never fails."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._recorded: OrderedDict[tuple[str, str, str], _Recorded] = OrderedDict()

    async def record(self, run: SpinRun, event: Event, now: datetime) -> None:
        """Writes an Event about the run, or counts one that said the same."""
        message = event.message[:MESSAGE_LIMIT]
        logger.info("%s: %s", event.reason, message, extra=facts_of(run))
        key = (run.metadata.uid or "", event.reason, message)
        known = self._recorded.get(key)
        if known is not None and time.monotonic() - known.at < QUIET_SECONDS:
            return
        try:
            if known is None:
                name = await self._create(run, event.kind, event.reason, message, times.to_text(now))
                known = self._recorded[key] = _Recorded(name, 1, time.monotonic())
            else:
                known.count, known.at = known.count + 1, time.monotonic()
                patch = {"count": known.count, "lastTimestamp": times.to_text(now)}
                await self._api.patch_event(names.namespace(run), known.name, patch)
        except TRANSIENT as error:
            self._recorded.pop(key, None)
            logger.warning("event %s is lost: %s", event.reason, error, extra=facts_of(run))
        while len(self._recorded) > MAX_RECORDED:
            self._recorded.popitem(last=False)

    async def _create(self, run: SpinRun, kind: str, reason: str, message: str, now: str) -> str:
        name = f"{run.metadata.name}.{secrets.token_hex(8)}"
        about = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": names.namespace(run),
            "name": run.metadata.name,
            "uid": run.metadata.uid,
        }
        document = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": names.namespace(run)},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": names.OPERATOR},
            "reportingComponent": names.OPERATOR,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._api.create_event(document)
        return name
