"""The client of the API server: one place that sends, and the few calls that the operator and the command line make.

Documents stay the plain JSON that the server sends: the client library's typed models would cost most of the operator's time.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
from kubernetes.aio import client, config

from spinrun_kube.kinds import EVENT, SPIN_RUN, Kind, kind_of
from spinrun_kube.names import OPERATOR

Json = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
PAGE = 500


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


TRANSIENT = (ApiError, aiohttp.ClientError, asyncio.TimeoutError, OSError)
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
    api_client = client.ApiClient(configuration)
    api_client.user_agent = user_agent
    return api_client


class Api:
    """The calls that the operator and the command line make."""

    def __init__(
        self,
        api_client: client.ApiClient,
        *,
        request_timeout_seconds: float = 20.0,
        watch_silence_seconds: float = 90.0,
        field_manager: str = OPERATOR,
        observe: RequestObserver = _unobserved,
    ) -> None:
        """Makes the calls by a client of the library, which stays the caller's to close.

        Args:
            api_client: The library's client, which knows the server and who we are.
            request_timeout_seconds: Longest wait for an answer, and for the connection that a watch or a stream needs.
            watch_silence_seconds: Silence after which a watch is taken for dead.
            field_manager: Who owns the fields that `apply` and `replace_status` write.
            observe: Is told of every request.
        """
        self._client = api_client
        self._request_timeout = request_timeout_seconds
        self._watch_silence = watch_silence_seconds
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
    ) -> Json:
        """Sends a request and returns the answer. Every call comes through here but watches and streams.

        Raises:
            ApiError: The API server refused it.
            TRANSIENT: One of the others: no answer came.
        """
        started, result = time.monotonic(), "error"
        try:
            async with self._open(
                verb, path, query=query, body=body, content_type=content_type, accept=accept, timeout=self._request_timeout
            ) as response:
                content = await response.read()
                result = str(response.status)
            return json.loads(content)
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
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """An answer whose body is still to be read. Raises one of TRANSIENT."""
        method, url, headers, content, _ = await self._client.param_serialize(
            verb,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": accept},
            body=body,
            auth_settings=["BearerToken"],
        )
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=self._request_timeout)
        response = (await self._client.call_api(method, url, headers, content, _request_timeout=limit)).response
        try:
            if response.status >= 400:
                raise _error(response, await response.read())
            yield response
        finally:
            # A connection whose answer was read to its end has gone back to the pool before.
            response.close()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str, *, metadata_only: bool = False) -> Json | None:
        """The object, or None when there is none."""
        accept = METADATA_ONLY.format("") if metadata_only else "application/json"
        try:
            return await self.request("GET", kind.path(namespace, name), accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", metadata_only: bool = False
    ) -> tuple[list[Json], str]:
        """All objects that the selectors select, and the version of the list."""
        accept = METADATA_ONLY.format("List") if metadata_only else "application/json"
        query = {"limit": str(PAGE)}
        query |= {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        items: list[Json] = []
        while True:
            page = await self.request("GET", kind.path(namespace), query=query, accept=accept)
            items += page.get("items") or []
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return items, page["metadata"]["resourceVersion"]

    async def watch(
        self, kind: Kind, namespace: str | None, *, labels: str, version: str, seconds: float, metadata_only: bool = False
    ) -> AsyncIterator[Json]:
        """Events from a version on, bookmarks included, for a time.

        Raises:
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
        async with self._open("GET", kind.path(namespace), query=query, accept=accept) as response:
            while line := await self._next_line(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    failure = event["object"]
                    raise ApiError(failure.get("code", 500), failure.get("reason", ""), failure.get("message", ""))
                yield event

    async def _next_line(self, response: aiohttp.ClientResponse) -> bytes:
        """The next event; empty at the end of the watch."""
        async with asyncio.timeout(self._watch_silence):
            return await response.content.readline()

    async def has_kind(self, kind: Kind) -> bool:
        """Whether the cluster knows a kind."""
        try:
            resources = await self.request("GET", f"/apis/{kind.api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(resource["name"] == kind.plural for resource in resources.get("resources") or ())

    # --- writing ---------------------------------------------------------------------------------------------------

    async def apply(self, document: Json) -> Json:
        """Server-side apply; returns what the object is now. A uid in the document must be the object's."""
        metadata = document["metadata"]
        path = kind_of(document).path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": self._field_manager, "force": "true", "fieldValidation": "Strict"}
        return await self.request("PATCH", path, query=query, body=document, content_type=APPLY)

    async def replace_status(self, document: Json) -> Json:
        """Writes the status of a run; 409 when the run has changed since the document was read."""
        metadata = document["metadata"]
        path = SPIN_RUN.path(metadata["namespace"], metadata["name"], "status")
        return await self.request("PUT", path, query={"fieldManager": self._field_manager}, body=document)

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


def _error(response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    """The error that the API server describes in the body of an answer, or whatever stands there instead."""
    try:
        status = json.loads(content)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = str(response.reason), content[:200].decode("utf-8", "replace")
    after = response.headers.get("Retry-After", "")
    return ApiError(response.status, reason, message, float(after) if after.isdecimal() else None)
