"""Talking to the API server: one method that sends, and the few calls that the operator makes.

Documents stay the plain JSON that the server sends: the client library's typed models would cost most of the operator's time.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from spinrun_kube.kinds import EVENT, SPIN_RUN, Kind, kind_of
from spinrun_kube.names import FIELD_MANAGER
from spinrun_operator.metrics import Metrics
from spinrun_operator.settings import Settings

Json = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
PAGE = 500
USER_AGENT = "spinrun-operator"


class ApiError(Exception):
    """The API server refused a request. `status` is HTTP's, `reason` Kubernetes'."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks to wait for."""

    @property
    def is_refusal(self) -> bool:
        """Whether the same request will be refused again until somebody changes something."""
        # The API server calls a field that does not exist in a pod template an internal error.
        return self.status in (400, 403, 404, 422) or "field not declared in schema" in self.message


TRANSIENT = (ApiError, aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request may raise, and what a later one may not meet any more."""


async def connect(settings: Settings) -> client.ApiClient:
    """A client by the pod's service account, or by KUBECONFIG. Raises ConfigException when there is neither."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        # Not by the library's own default: it reads KUBECONFIG when it is imported.
        await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
    configuration.connection_pool_maxsize = 2 * settings.workers + 32
    api_client = client.ApiClient(configuration)
    api_client.user_agent = USER_AGENT
    return api_client


class Api:
    """The calls that the operator makes."""

    def __init__(self, api_client: client.ApiClient, settings: Settings, metrics: Metrics) -> None:
        self._client = api_client
        self._settings = settings
        self._metrics = metrics

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
        """Sends a request and returns the answer. Every call but watching comes through here. Raises one of TRANSIENT."""
        started = time.monotonic()
        result = "error"
        try:
            response = await self._open(verb, path, query, body, content_type, accept, self._settings.request_timeout_seconds)
            content = await response.read()
            result = str(response.status)
            if response.status >= 400:
                raise _error(response, content)
            return json.loads(content)
        finally:
            self._metrics.api_request(verb, path, result, time.monotonic() - started)

    async def _open(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Json | None,
        content_type: str,
        accept: str,
        timeout: float | None,
    ) -> aiohttp.ClientResponse:
        method, url, headers, content, _ = await self._client.param_serialize(
            verb,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": accept},
            body=body,
            auth_settings=["BearerToken"],
        )
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=self._settings.request_timeout_seconds)
        answer = await self._client.call_api(method, url, headers, content, _request_timeout=limit)
        return answer.response

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
        """Events from a version on, bookmarks included, for a time. Raises TimeoutError when the watch falls silent."""
        accept = METADATA_ONLY.format("") if metadata_only else "application/json"
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": labels,
            "resourceVersion": version,
            "timeoutSeconds": str(round(seconds)),
        }
        response = await self._open("GET", kind.path(namespace), query, None, "application/json", accept, None)
        try:
            if response.status >= 400:
                raise _error(response, await response.read())
            while line := await self._next_line(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    failure = event["object"]
                    raise ApiError(failure.get("code", 500), failure.get("reason", ""), failure.get("message", ""))
                yield event
        finally:
            response.close()

    async def _next_line(self, response: aiohttp.ClientResponse) -> bytes:
        """The next event; empty at the end of the watch."""
        async with asyncio.timeout(self._settings.watch_silence_seconds):
            return await response.content.readline()

    async def apply(self, document: Json) -> Json:
        """Server-side apply; returns what the object is now. A uid in the document must be the object's."""
        metadata = document["metadata"]
        path = kind_of(document).path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        return await self.request("PATCH", path, query=query, body=document, content_type=APPLY)

    async def replace_status(self, document: Json) -> Json:
        """Writes the status of a run; 409 when the run has changed since the document was read."""
        metadata = document["metadata"]
        path = SPIN_RUN.path(metadata["namespace"], metadata["name"], "status")
        return await self.request("PUT", path, query={"fieldManager": FIELD_MANAGER}, body=document)

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

    async def has_kind(self, kind: Kind) -> bool:
        """Whether the cluster knows a kind."""
        try:
            resources = await self.request("GET", f"/apis/{kind.api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(resource["name"] == kind.plural for resource in resources.get("resources") or ())


def _error(response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    try:
        status = json.loads(content)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = str(response.reason), content[:200].decode("utf-8", "replace")
    after = response.headers.get("Retry-After", "")
    return ApiError(response.status, reason, message, float(after) if after.isdecimal() else None)
