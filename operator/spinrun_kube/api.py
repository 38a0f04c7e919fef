"""The client of the API server: one place that sends, and the few calls that the operator and the command line make.

Documents stay the plain JSON that the server sends: the client library's typed models would cost most of the operator's time.
"""

import asyncio
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client, config

from spinrun_kube.answers import AnswerTooLongError, InvalidAnswerError, lines, parse_object, read_at_most
from spinrun_kube.kinds import EVENT, SPIN_RUN, Kind, kind_of
from spinrun_kube.names import OPERATOR

Json = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"

PAGE = 100
"""Objects that are asked for at a time, fewer where they are large."""
MOST_PAGES = 10_000
"""Pages after which a list counts as one that does not end."""
PAGE_BYTES = LINE_BYTES = 4 << 20
"""Longest page of a list and longest line of a watch that is read: some of them are in memory at a time."""
ANSWER_BYTES = 64 << 20
"""Longest of all other answers, unless whoever makes the calls says otherwise."""
OBJECT_BYTES = 16 << 20
"""More than an object can have: the API server stores 1.5 MiB of it, and writes up to six characters for one."""
_ERROR_BYTES = 1 << 20
_ERROR_CHARACTERS = 4000

SKIPPED: Json = {"type": "SKIPPED", "object": {}}
"""Stands in a watch for an event that is too long to be read."""


class ApiError(Exception):
    """The API server refused a request.

    Attributes:
        status: HTTP's status.
        reason: Kubernetes' reason, a word in PascalCase.
        message: What the server says.
        retry_after: Seconds that the server asks to wait for, if it does.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def is_refusal(self) -> bool:
        """Whether the same request will be refused again until somebody changes something."""
        # The API server calls a field that does not exist in a pod template an internal error.
        return self.status in (400, 403, 404, 422) or "field not declared in schema" in self.message


TRANSIENT = (ApiError, InvalidAnswerError, aiohttp.ClientError, asyncio.TimeoutError, OSError, config.ConfigException)
"""What a request may raise, and a later one may not meet any more."""


class RequestObserver(Protocol):
    """Is told of every request that has been answered or has failed; watches and other streams are not among them."""

    def __call__(self, verb: str, path: str, result: str, seconds: float, /) -> None:
        """Takes note of a request.

        Args:
            verb: HTTP's method.
            path: Path of the URL.
            result: Status of the answer; "error" where there was none.
            seconds: How long it took.
        """
        ...


def _unobserved(_verb: str, _path: str, _result: str, _seconds: float, /) -> None:
    """Nobody wants to know."""


async def connect(*, pool_size: int = 100, user_agent: str = OPERATOR) -> client.ApiClient:
    """A client by the pod's service account, or by KUBECONFIG outside of a pod.

    Args:
        pool_size: Most connections to the API server at a time.
        user_agent: How the client names itself in the API server's audit log.

    Raises:
        ConfigException: There is neither a service account nor a kubeconfig.
    """
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        # Not by the library's own default: it reads KUBECONFIG when it is imported.
        await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
    configuration.connection_pool_maxsize = pool_size
    # Of the environment nothing is looked up at each request: it has a proxy for the one server or has none.
    configuration.client_session_kwargs = {"middlewares": (_refuse_redirects,), "trust_env": False}
    configuration.proxy = configuration.proxy or _proxy_for(configuration.host)
    api_client = client.ApiClient(configuration)
    api_client.user_agent = user_agent
    return api_client


def _proxy_for(url: str) -> str | None:
    """The proxy by which the environment has a server reached: HTTPS_PROXY and its like, unless NO_PROXY names the server."""
    server = urlsplit(url)
    return None if proxy_bypass(server.hostname or "") else getproxies().get(server.scheme)


async def _refuse_redirects(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """An API server has no reason to send anybody elsewhere, with a token or a Secret in hand."""
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise InvalidAnswerError(f"{request.method} {request.url.path} was answered by a redirect, {response.status}")
    return response


class Api:
    """The calls that the operator and the command line make."""

    def __init__(
        self,
        api_client: client.ApiClient,
        *,
        request_timeout_seconds: float = 20.0,
        watch_silence_seconds: float = 90.0,
        answer_bytes: int = ANSWER_BYTES,
        field_manager: str = OPERATOR,
        observe: RequestObserver = _unobserved,
    ) -> None:
        """Makes the calls by a client of the library, which stays the caller's to close.

        Args:
            api_client: The library's client, which knows the server and who we are.
            request_timeout_seconds: Longest wait for an answer, and for the connection that a watch or a stream needs.
            watch_silence_seconds: Silence after which a watch is taken for dead.
            answer_bytes: Longest answer that is read, but for pages of lists and lines of watches, which have their own limit.
            field_manager: Who owns the fields that `apply` and `replace_status` write.
            observe: Is told of every request.
        """
        self._client = api_client
        self._request_timeout = request_timeout_seconds
        self._watch_silence = watch_silence_seconds
        self._answer_bytes = answer_bytes
        self._field_manager = field_manager
        self._observe = observe

    # --- sending ---------------------------------------------------------------------------------------------------

    async def request(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        limit: int | None = None,
    ) -> Json:
        """Sends a request and returns the answer. Every call comes through here but watches and streams.

        Args:
            verb: HTTP's method.
            path: Path of the URL.
            query: Its query.
            body: What is sent along.
            content_type: What that is.
            accept: What may be answered.
            limit: Longest answer that is read, in bytes; None: as the client was made.

        Raises:
            ApiError: The API server refused it.
            AnswerTooLongError: The answer is above the limit.
            TRANSIENT: One of the others: no answer came, or something else than Kubernetes' JSON.
        """
        started, result = time.monotonic(), "error"
        try:
            async with self._open(
                verb, path, query=query, body=body, content_type=content_type, accept=accept, timeout=self._request_timeout
            ) as response:
                content = await read_at_most(response.content, limit or self._answer_bytes)
                result = str(response.status)
            return await parse_object(content)
        except ApiError as error:
            result = str(error.status)
            raise
        finally:
            self._observe(verb, path, result, time.monotonic() - started)

    async def stream(self, path: str, query: Mapping[str, str] | None = None) -> AsyncGenerator[bytes]:
        """What the API server sends for a GET, in pieces as they come, for as long as it lasts: a container's log.

        Raises:
            ApiError: The API server refused it.
            TRANSIENT: One of the others: the connection failed or broke.
        """
        async with self._open("GET", path, query=query, accept="*/*") as response:
            async for piece in response.content.iter_any():
                yield piece

    @asynccontextmanager
    async def _open(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        accept: str,
        timeout: float | None = None,
        begin_timeout: float | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """An answer whose body is still to be read, to a request as `request` takes it. Raises one of TRANSIENT.

        `timeout` is for all of it, and `begin_timeout` until its headers, in seconds; None, for either, is any time: a container
        that says nothing has a log without headers.
        """
        # The body is JSON already, of which this would make a copy value by value.
        method, url, headers, _, _ = await self._client.param_serialize(
            verb,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": accept},
            auth_settings=["BearerToken"],
        )
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=self._request_timeout)
        async with asyncio.timeout(begin_timeout):
            response = (await self._client.call_api(method, url, headers, body, _request_timeout=limit)).response
        try:
            if response.status >= 400:
                async with asyncio.timeout(self._request_timeout):
                    raise await _error(response)
            yield response
        finally:
            # A connection whose answer was read to its end has gone back to the pool before.
            response.close()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str, *, metadata_only: bool = False) -> Json | None:
        """The object, or None when there is none."""
        accept = METADATA_ONLY.format("") if metadata_only else "application/json"
        try:
            return _read_object(await self.request("GET", kind.path(namespace, name), accept=accept))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def pages(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", metadata_only: bool = False
    ) -> AsyncGenerator[tuple[list[Json], str]]:
        """All objects that the selectors select, page by page, and the version so far: the last is the list's.

        Of an object that is larger than a page may be there is no more than its metadata, as a PartialObjectMetadata.

        Raises:
            InvalidAnswerError: What comes is not a list of these objects, or does not end.
            TRANSIENT: One of the others.
        """
        selectors = {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}

        async def page_of(count: int, start: str, *, metadata_only: bool, limit: int) -> Json:
            query = {"limit": str(count), **selectors, **({"continue": start} if start else {})}
            accept = METADATA_ONLY.format("List") if metadata_only else "application/json"
            return await self.request("GET", kind.path(namespace), query=query, accept=accept, limit=limit)

        count, good_pages, start = PAGE, 0, ""
        for _ in range(MOST_PAGES):
            try:
                page = await page_of(count, start, metadata_only=metadata_only, limit=PAGE_BYTES)
            except AnswerTooLongError:
                if count > 1:
                    count, good_pages = max(1, count // 4), 0
                    continue
                page = await page_of(1, start, metadata_only=True, limit=OBJECT_BYTES)
            items, version, following = _read_page(page, kind)
            yield items, version
            if not following:
                return
            if following == start:
                break
            start, good_pages = following, good_pages + 1
            if good_pages % 4 == 0:
                count = min(PAGE, 2 * count)
        raise InvalidAnswerError(f"the list of {kind.plural} does not end")

    async def list(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        keep: Callable[[Json], Json | None] = lambda document: document,
    ) -> tuple[list[Json], str]:
        """The same at once.

        Args:
            kind: Kind of the objects.
            namespace: None: all namespaces.
            labels: Selector of labels.
            fields: Selector of fields.
            metadata_only: Whether no more than the objects' metadata is asked for.
            keep: What is kept of an object, of which at most a page is in memory; None: nothing.

        Returns:
            The objects, and the version of the list.
        """
        found: list[Json] = []
        version = ""
        pages = self.pages(kind, namespace, labels=labels, fields=fields, metadata_only=metadata_only)
        async for items, listed in pages:
            found += [kept for item in items if (kept := keep(item)) is not None]
            version = listed
        return found, version

    async def watch(
        self, kind: Kind, namespace: str | None, *, labels: str, version: str, seconds: float, metadata_only: bool = False
    ) -> AsyncGenerator[Json]:
        """Events from a version on, bookmarks included, for a time; `SKIPPED` for one that is too long.

        Raises:
            InvalidAnswerError: Something else than events came.
            TimeoutError: The watch has fallen silent.
            TRANSIENT: One of the others.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": labels,
            "resourceVersion": version,
            "timeoutSeconds": str(round(seconds)),
        }
        accept = METADATA_ONLY.format("") if metadata_only else "application/json"
        # The API server ends a watch in time; whatever does not is left.
        until = time.monotonic() + seconds + self._watch_silence
        path = kind.path(namespace)
        async with self._open("GET", path, query=query, accept=accept, begin_timeout=self._request_timeout) as response:
            async for line in lines(response.content, limit=LINE_BYTES, silence_seconds=self._watch_silence):
                yield SKIPPED if line is None else _read_event(await parse_object(line))
                if time.monotonic() > until:
                    return

    async def has_kind(self, kind: Kind) -> bool:
        """Whether the cluster knows a kind."""
        try:
            answer = await self.request("GET", f"/apis/{kind.api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        resources = answer.get("resources")
        if not isinstance(resources, list):
            raise InvalidAnswerError(f"the answer about {kind.api_version} names no resources")
        return any(isinstance(resource, dict) and resource.get("name") == kind.plural for resource in resources)

    # --- writing ---------------------------------------------------------------------------------------------------

    async def create(self, document: Json) -> Json:
        """Makes an object; ApiError with the reason AlreadyExists where there is one of its name."""
        query = {"fieldManager": self._field_manager, "fieldValidation": "Strict"}
        path = kind_of(document).path(document["metadata"]["namespace"])
        return _read_object(await self.request("POST", path, query=query, body=document))

    async def own_created_fields(self, kind: Kind, namespace: str, name: str) -> None:
        """Lets server-side apply take away again what `create` has written.

        The API server keeps the fields of a creation apart from those of an apply, though the same manager sent both: a field
        that an apply leaves out would stay for the creation's sake. So that entry is made one of an apply.
        """
        found = await self.get(kind, namespace, name, metadata_only=True)
        entries: list[Json] = (found or {"metadata": {}})["metadata"].get("managedFields") or []
        ours = [entry for entry in entries if entry.get("manager") == self._field_manager and not entry.get("subresource")]
        if found is None or [entry.get("operation") for entry in ours] != ["Update"]:
            return
        owned = [entry | {"operation": "Apply"} if entry is ours[0] else entry for entry in entries]
        metadata = {name: found["metadata"][name] for name in ("uid", "resourceVersion")} | {"managedFields": owned}
        await self.request("PATCH", kind.path(namespace, name), body={"metadata": metadata}, content_type=MERGE_PATCH)

    async def apply(self, document: Json) -> Json:
        """Server-side apply; returns what the object is now. A uid in the document must be the object's."""
        metadata = document["metadata"]
        path = kind_of(document).path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": self._field_manager, "force": "true", "fieldValidation": "Strict"}
        return _read_object(await self.request("PATCH", path, query=query, body=document, content_type=APPLY))

    async def replace_status(self, document: Json) -> Json:
        """Writes the status of a run; 409 when the run has changed since the document was read."""
        metadata = document["metadata"]
        path = SPIN_RUN.path(metadata["namespace"], metadata["name"], "status")
        return _read_object(await self.request("PUT", path, query={"fieldManager": self._field_manager}, body=document))

    async def delete(self, document: Json, *, propagation: str) -> None:
        """Deletes this very object, unless it has changed since it was read; what is gone already counts as deleted."""
        metadata = document["metadata"]
        preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": propagation,
        }
        try:
            await self.request("DELETE", kind_of(document).path(metadata["namespace"], metadata["name"]), body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    async def create_event(self, document: Json) -> Json:
        """Makes an Event."""
        return await self.request("POST", EVENT.path(document["metadata"]["namespace"]), body=document)

    async def patch_event(self, namespace: str, name: str, patch: Json) -> Json:
        """Changes an Event."""
        return await self.request("PATCH", EVENT.path(namespace, name), body=patch, content_type=MERGE_PATCH)


def _read_page(page: Json, kind: Kind) -> tuple[list[Json], str, str]:
    """Objects of a page, the version of its list, and what to ask for the next page with; empty after the last."""
    metadata, items, name = page.get("metadata"), page.get("items"), page.get("kind", "List")
    if name not in ("List", f"{kind.name}List", "PartialObjectMetadataList") or not isinstance(metadata, dict):
        raise InvalidAnswerError(f"the answer is not a list of {kind.plural}, but of kind {str(name)[:100]!r}")
    version, next_page = metadata.get("resourceVersion"), metadata.get("continue") or ""
    if not isinstance(version, str) or not version or not isinstance(next_page, str):
        raise InvalidAnswerError(f"the list of {kind.plural} has no version")
    if items is None:
        items = []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidAnswerError(f"the list of {kind.plural} holds something else than objects")
    return items, version, next_page


def _read_object(answer: Json) -> Json:
    """The object that was asked for or written. Raises InvalidAnswerError when something else came, such as a proxy's page."""
    metadata = answer.get("metadata")
    texts = ("name", "namespace", "uid", "resourceVersion")
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(text), str) for text in texts):
        raise InvalidAnswerError("the answer is not an object")
    return answer


def _read_event(event: Json) -> Json:
    """The event of a line of a watch. Raises ApiError for one that tells of an error."""
    kind, document = event.get("type"), event.get("object")
    if kind == "ERROR":
        failure = document if isinstance(document, dict) else {}
        code = failure.get("code")
        raise ApiError(code if isinstance(code, int) else 500, _text(failure.get("reason")), _text(failure.get("message")))
    if not isinstance(kind, str) or not isinstance(document, dict):
        raise InvalidAnswerError("a line of the watch is not an event")
    return event


async def _error(response: aiohttp.ClientResponse) -> ApiError:
    """The error that the API server describes in the body of an answer, or whatever stands there instead."""
    content = b""
    try:
        content = await read_at_most(response.content, _ERROR_BYTES)
        status = await parse_object(content)
        reason, message = _text(status.get("reason")), _text(status.get("message"))
    except InvalidAnswerError:
        reason, message = str(response.reason), content[:200].decode("utf-8", "replace")
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if after.isdecimal() else math.inf
    return ApiError(response.status, reason, message, seconds if math.isfinite(seconds) else None)


def _text(value: Any) -> str:
    """What an error says in a field."""
    return "" if value is None else str(value)[:_ERROR_CHARACTERS]
