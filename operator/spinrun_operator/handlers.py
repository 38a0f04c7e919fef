"""kopf's part: it tells of each SpinRun that has changed, and a handler wakes the controller. The handler holds no logic.

kopf lets an operator bring an HTTP session of its own. The one that it gets here answers from a mirror in this process, and not
from the API server: what is there has been checked by `follow.py` before, so that no tenant's object can end kopf. kopf runs in a
thread, because as it ends it cancels every task of its event loop.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, cast

import aiohttp
import kopf

from spinrun_api.run import GROUP, PLURAL, VERSION
from spinrun_operator.backoff import Backoff
from spinrun_operator.controller import Controller
from spinrun_operator.queue import Key
from spinrun_operator.store import key_of

Json = dict[str, Any]

_NOWHERE = "http://mirror.invalid"
_STOP_SECONDS = 10.0

logger = logging.getLogger(__name__)

# Before it watches, kopf asks which kinds there are, and waits until namespaces and CRDs are among them; it follows neither.
_VERBS = ["get", "list", "watch"]
_KINDS: dict[str, Json] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {
        "resources": [
            {"name": "namespaces", "singularName": "namespace", "kind": "Namespace", "namespaced": False, "verbs": _VERBS},
            {"name": "events", "singularName": "event", "kind": "Event", "namespaced": True, "verbs": ["create"]},
        ]
    },
    "/apis": {
        "groups": [
            {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
            for group, version in (("apiextensions.k8s.io", "v1"), (GROUP, VERSION))
        ]
    },
    "/apis/apiextensions.k8s.io/v1": {
        "resources": [
            {
                "name": "customresourcedefinitions",
                "singularName": "customresourcedefinition",
                "kind": "CustomResourceDefinition",
                "namespaced": False,
                "verbs": _VERBS,
            }
        ]
    },
    f"/apis/{GROUP}/{VERSION}": {
        "resources": [{"name": PLURAL, "singularName": "spinrun", "kind": "SpinRun", "namespaced": True, "verbs": _VERBS}]
    },
}


def registry(wake: Callable[[Key], None], session: "Mirror") -> kopf.OperatorRegistry:
    """kopf's handlers: the one that wakes, and a login to the mirror."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=_NOWHERE, aiohttp_session=cast(aiohttp.ClientSession, session))

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    def changed(event: kopf.RawEvent, **_: Any) -> None:
        wake(key_of(dict(event["object"])))

    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """kopf as this operator needs it."""
    chosen = kopf.OperatorSettings()
    # Our events say what matters; kopf's would tell of each handler call.
    chosen.posting.enabled = False
    # One operator, and two by mistake do no harm: no peering objects are needed.
    chosen.peering.standalone = True
    # The kinds are known: CRDs and, in watched namespaces, the namespaces themselves need not be watched.
    chosen.scanning.disabled = True
    chosen.queueing.idle_timeout = 1.0
    return chosen


@asynccontextmanager
async def waking(controller: Controller) -> AsyncGenerator[None]:
    """Lets kopf wake the controller for as long as this lasts. While kopf is not there, the controller wakes itself."""
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def wake(key: Key) -> None:
        loop.call_soon_threadsafe(controller.wake, key)

    async def operate() -> None:
        mirror = Mirror(controller, loop)
        try:
            await kopf.operator(
                registry=registry(wake, mirror), settings=kopf_settings(), standalone=True, clusterwide=True, stop_flag=stop
            )
        finally:
            loop.call_soon_threadsafe(mirror.leave)

    def serve() -> None:
        backoff = Backoff(healthy_seconds=60.0)
        while not stop.is_set():
            started = time.monotonic()
            try:
                asyncio.run(operate())
            except Exception:
                logger.exception("kopf has ended; it is started again, and meanwhile the controller wakes itself")
            stop.wait(backoff.pause(time.monotonic() - started))

    thread = threading.Thread(target=serve, name="kopf", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        await asyncio.to_thread(thread.join, _STOP_SECONDS)


class Mirror:
    """Stands for an aiohttp session to an API server that has the SpinRuns that the controller knows, and nothing else.

    It lives in kopf's event loop, and the controller in another.
    """

    def __init__(self, controller: Controller, controllers_loop: asyncio.AbstractEventLoop) -> None:
        self.headers: dict[str, str] = {}
        self.closed = False
        self._controller = controller
        self._controllers_loop = controllers_loop
        self._loop = asyncio.get_running_loop()
        self._changes: asyncio.Queue[Json] = asyncio.Queue()

    async def request(self, method: str, url: str, **_: Any) -> "Answer":
        """What kopf asks.

        Raises:
            ValueError: It is nothing that is known here.
        """
        path, _separator, query = url.removeprefix(_NOWHERE).partition("?")
        if method == "get" and path in _KINDS:
            return Answer(_KINDS[path])
        if method != "get" or not path.endswith(f"/{PLURAL}"):
            raise ValueError(f"kopf is not to ask for {method} {path}")
        if "watch=true" in query:
            return Answer({}, self._told())
        runs = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._enter(), self._controllers_loop))
        return Answer({"items": runs, "metadata": {"resourceVersion": "1"}})

    async def close(self) -> None:
        """As a session does."""
        self.closed = True

    async def _told(self) -> AsyncIterator[bytes]:
        """The lines of a watch."""
        while True:
            yield json.dumps(await self._changes.get()).encode() + b"\n"

    # --- in the controller's loop ----------------------------------------------------------------------------------

    async def _enter(self) -> list[Json]:
        """The runs that are known, of which every later change is told."""
        self._controller.tell = self.tell
        return [_short(body) for body in self._controller.run_bodies()]

    def tell(self, change: str, body: Json) -> None:
        """Tell kopf of a change."""
        event: Json = {"type": "DELETED" if change == "DELETED" else "MODIFIED", "object": _short(body)}
        self._loop.call_soon_threadsafe(self._changes.put_nowait, event)

    def leave(self) -> None:
        """Stop telling kopf, which has ended."""
        if self._controller.tell == self.tell:
            self._controller.tell = None


class Answer:
    """Stands for an aiohttp response."""

    status = 200

    def __init__(self, document: Json, lines: AsyncIterator[bytes] | None = None) -> None:
        self._document = document
        self._lines = lines
        self.closed = False

    async def json(self) -> Json:
        """The document, which kopf may change."""
        return json.loads(json.dumps(self._document))

    @property
    def content(self) -> Self:
        """The lines of a watch are read from here."""
        return self

    def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """The lines of a watch, one at a time."""
        assert self._lines is not None
        return self._lines

    def close(self) -> None:
        """As a response does."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _short(body: Json) -> Json:
    """What a handler needs of a run: who it is."""
    metadata = body["metadata"]
    return {"metadata": {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion")}}
