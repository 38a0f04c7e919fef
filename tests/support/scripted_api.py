"""An API server that stores what it is given, as far as the operator needs it, and says whatever a test wants it to say."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from spinrun_kube.kinds import CHILDREN, EVENT, POD, SPIN_RUN, Kind
from support.ports import free_port

Json = dict[str, Any]
Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]

KIND_OF = {kind.name: kind for kind in (SPIN_RUN, POD, EVENT, *CHILDREN)}
KINDS = {kind.plural: kind for kind in (SPIN_RUN, POD, EVENT, *CHILDREN)}
BOOKMARK_SECONDS = 0.2
LIST, WATCH = "list", "watch"


class ScriptedApi:
    """A server on this machine.

    `answers` has what is said in place of the truth: to the verb (list, watch, get, patch, put, post, delete or discover) about
    a plural, or to that verb about all with the plural *.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.answers: dict[tuple[str, str], Behaviour] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        """Requests so far by verb and plural."""
        self.objects: dict[tuple[str, str, str], Json] = {}
        """What there is by plural, namespace and name."""
        self.raw: dict[tuple[str, str, str], str] = {}
        """Texts that are shown in place of objects: what JSON of this process cannot say."""
        self.honours_accept = True
        """Whether it says no more than the metadata when no more is asked for."""
        self.version = 100
        self._watchers: dict[str, set[asyncio.Queue[bytes | None]]] = {plural: set() for plural in KINDS}

    # --- what a test does ------------------------------------------------------------------------------------------

    def put(self, kind: Kind, document: Json) -> Json:
        """Stores an object with the next version, and tells those who watch."""
        self.version += 1
        metadata = {"uid": f"uid-{self.version}", "creationTimestamp": "2026-01-01T00:00:00Z", **document["metadata"]}
        metadata["resourceVersion"] = str(self.version)
        key = (kind.plural, metadata["namespace"], metadata["name"])
        change = "MODIFIED" if key in self.objects else "ADDED"
        stored = self.objects[key] = document | {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
        self.tell(kind, {"type": change, "object": stored})
        return stored

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Takes an object out, and tells those who watch."""
        self.version += 1
        gone = self.objects.pop((kind.plural, namespace, name))
        gone = gone | {"metadata": gone["metadata"] | {"resourceVersion": str(self.version)}}
        self.tell(kind, {"type": "DELETED", "object": gone})

    def tell(self, kind: Kind, event: Json | bytes) -> None:
        """Sends an event, or any bytes, to all who watch the kind."""
        sent = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
        for queue in self._watchers[kind.plural]:
            queue.put_nowait(sent)

    def end_watches(self) -> None:
        """Ends all watches in good order."""
        for queues in self._watchers.values():
            for queue in queues:
                queue.put_nowait(None)

    def of_kind(self, kind: Kind) -> list[Json]:
        """The objects of a kind."""
        return [document for (plural, _, _), document in self.objects.items() if plural == kind.plural]

    # --- what it answers -------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        parts = request.path.strip("/").split("/")[2 if request.path.startswith("/api/") else 3 :]
        namespace = parts[1] if parts[:1] == ["namespaces"] else None
        rest = parts[2:] if namespace else parts
        plural = rest[0] if rest else ""
        verb = request.method.lower()
        if verb == "get":
            verb = "discover" if not rest else "get" if len(rest) > 1 else WATCH if "watch" in request.query else LIST
        self.asked[verb, plural] += 1
        if answer := self.answers.get((verb, plural)) or self.answers.get((verb, "*")):
            return await answer(request)
        if verb == "discover":
            return web.json_response({"resources": [{"name": kind.plural} for kind in KINDS.values()]})
        if plural not in KINDS:
            return failure(404, "NotFound", "there is no such resource")
        kind = KINDS[plural]
        if verb == LIST:
            return self.list(request, kind, namespace)
        if verb == WATCH:
            return await self.watch(request, kind)
        return await self._one(request, verb, kind, namespace or "", rest[1] if len(rest) > 1 else "")

    def list(self, request: web.Request, kind: Kind, namespace: str | None) -> web.Response:
        """A page of a list."""
        found = [each for each in self.of_kind(kind) if namespace in (None, each["metadata"]["namespace"])]
        found = [each for each in found if _is_selected(each, request.query.get("labelSelector", ""))]
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or len(found) or 1)
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        items = ", ".join(self._shown(request, each) for each in found[start : start + limit])
        head = json.dumps({"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata})
        return web.Response(text=f'{head[:-1]}, "items": [{items}]}}', content_type="application/json")

    async def watch(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        """Events from now on, for as long as they are wanted."""
        response = await begin(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        since = int(request.query["resourceVersion"])
        for each in self.of_kind(kind):
            if int(each["metadata"]["resourceVersion"]) > since:
                queue.put_nowait(f'{{"type": "ADDED", "object": {self._shown(request, each)}}}\n'.encode())
        self._watchers[kind.plural].add(queue)
        try:
            while (sent := await _next(queue)) is not None:
                await response.write(sent or self._bookmark())
        except ConnectionError:
            pass
        finally:
            self._watchers[kind.plural].discard(queue)
        return response

    def _bookmark(self) -> bytes:
        event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
        return json.dumps(event).encode() + b"\n"

    async def _one(self, request: web.Request, verb: str, kind: Kind, namespace: str, name: str) -> web.Response:
        body = yaml.safe_load(await request.read()) if request.can_read_body else {}
        name = name or body["metadata"]["name"]
        known = self.objects.get((kind.plural, namespace, name))
        if verb == "get":
            if known is None:
                return failure(404, "NotFound", f"there is no {name}")
            return web.Response(text=self._shown(request, known), content_type="application/json")
        if verb == "delete":
            if known:
                self.remove(kind, namespace, name)
            return web.json_response({"kind": "Status", "status": "Success"})
        if verb == "post" and known:
            return failure(409, "AlreadyExists", f"{name} already exists")
        if verb == "put" and known:
            body = known | {"status": body["status"]}
        kept = {part: known[part] for part in ("status",) if known and part in known}
        old = known["metadata"] if known else {}
        return web.json_response(
            self.put(kind, {**kept, **body, "metadata": {**old, **body["metadata"], "namespace": namespace}})
        )

    def _shown(self, request: web.Request, document: Json) -> str:
        """The object's text, or that of its metadata where no more is asked for."""
        metadata = document["metadata"]
        if self.honours_accept and "PartialObjectMetadata" in request.headers.get("Accept", ""):
            return json.dumps({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
        raw = self.raw.get((KIND_OF[document["kind"]].plural, metadata["namespace"], metadata["name"]))
        return raw or json.dumps(document)


async def _next(queue: "asyncio.Queue[bytes | None]") -> bytes | None:
    """What is to be sent next; empty when there is nothing for a while, None at the end."""
    try:
        async with asyncio.timeout(BOOKMARK_SECONDS):
            return await queue.get()
    except TimeoutError:
        return b""


def _is_selected(document: Json, selector: str) -> bool:
    """By labels: that are there, or that have a value."""
    labels = document["metadata"].get("labels") or {}
    pairs = (each.partition("=") for each in selector.split(",") if each)
    return all(labels.get(name) == value if equals else name in labels for name, equals, value in pairs)


def failure(status: int, reason: str, message: str) -> web.Response:
    """An error as Kubernetes says it."""
    said = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}
    return web.json_response(said, status=status)


async def begin(request: web.Request) -> web.StreamResponse:
    """A stream of which the headers are sent."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    return response


# --- what it may be made to say ------------------------------------------------------------------------------------


def text(
    body: str | bytes, headers: dict[str, str] | None = None, *, status: int = 200, content_type: str = "application/json"
) -> Behaviour:
    """Always the same, whole."""

    async def answer(_: web.Request) -> web.Response:
        content = body.encode() if isinstance(body, str) else body
        return web.Response(body=content, status=status, headers={"Content-Type": content_type} | (headers or {}))

    return answer


def document(body: Any, headers: dict[str, str] | None = None, *, status: int = 200) -> Behaviour:
    """Always the same JSON."""
    return text(json.dumps(body), headers, status=status)


def stream(*pieces: bytes | float, then_reset: bool = False) -> Behaviour:
    """These pieces, with pauses of so many seconds; then the end, or a broken connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        for piece in pieces:
            if isinstance(piece, bytes):
                await response.write(piece)
            else:
                await asyncio.sleep(piece)
        if then_reset:
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


async def hang(_: web.Request) -> web.StreamResponse:
    """Nothing, for ever."""
    await asyncio.Event().wait()
    raise AssertionError


async def reset(request: web.Request) -> web.StreamResponse:
    """A broken connection, without a word."""
    assert request.transport is not None
    request.transport.abort()
    await asyncio.sleep(1)
    raise AssertionError


# --- its life ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def scripted_api(folder: Path) -> AsyncGenerator[tuple[ScriptedApi, Path]]:
    """A server, and the kubeconfig that names it."""
    api = ScriptedApi()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", api.port).start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "scripted", "user": "me"}}],
                "clusters": [{"name": "scripted", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}],
                "users": [{"name": "me", "user": {"token": "secret"}}],
            }
        )
    )
    try:
        yield api, kubeconfig
    finally:
        await runner.cleanup()
