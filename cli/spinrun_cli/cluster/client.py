"""The cluster as a person with a kubeconfig reaches it: requests that are tried again, and errors that say what to do."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes.aio import client, config

from spinrun_api.run import KIND
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_kube.api import TRANSIENT, Api, ApiError
from spinrun_kube.kinds import POD, Kind

Json = dict[str, Any]
Result = TypeVar("Result")

TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = (0.25, 0.5, 1.0)
"""Waits before a request is sent again. Everything sent here may be sent twice: nothing is created that apply would not find."""
LONGEST_RETRY_SECONDS = 30.0
"""Longest wait that the API server can ask for."""

IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class UnreachableError(CommandError):
    """The API server does not answer, or cannot for now."""


class NotFoundError(CommandError):
    """The object is not there."""


class ForbiddenError(CommandError):
    """The user's roles do not allow it."""


class ConflictError(CommandError):
    """Another writer has changed the object."""


@dataclass(frozen=True)
class Access:
    """Which cluster and namespace are meant; None: those of the kubeconfig's current context."""

    context: str | None = None
    namespace: str | None = None


@dataclass(frozen=True)
class Cluster:
    """A cluster, and the namespace that is meant where none is named."""

    api: Api
    host: str
    namespace: str

    async def request(self, verb: str, kind: Kind, namespace: str | None, name: str | None = None, **arguments: Any) -> Json:
        """Sends a request about an object or a collection.

        Args:
            verb: HTTP's method.
            kind: Kind of the object.
            namespace: None: all namespaces.
            name: Name of the object; None: the collection.
            arguments: Those of `Api.request`.

        Raises:
            CommandError: The cluster cannot be reached, or refuses.
        """
        for delay in (*RETRY_SECONDS, None):
            try:
                return await self.api.request(verb, kind.path(namespace, name), **arguments)
            except TRANSIENT as error:
                if delay is None or not _may_pass(error):
                    raise self._explained(error, verb, kind, namespace, name) from error
                asked = error.retry_after if isinstance(error, ApiError) else None
                await asyncio.sleep(min(max(delay, asked or 0.0), LONGEST_RETRY_SECONDS))
        raise AssertionError("the last try returns or raises")

    async def items(self, kind: Kind, namespace: str, **selectors: str) -> list[Json]:
        """The objects of a namespace that the selectors select.

        Raises:
            CommandError: The cluster cannot be reached, or refuses.
        """
        return (await self.request("GET", kind, namespace, query=selectors)).get("items") or []

    async def log(self, namespace: str, pod: str, **query: str) -> AsyncGenerator[bytes]:
        """The log of a container, in pieces as they come, until it ends.

        Args:
            namespace: Namespace of the pod.
            pod: Name of the pod.
            query: That of the API's `log`.

        Raises:
            CommandError: The cluster cannot be reached, or refuses.
        """
        try:
            async with aclosing(self.api.stream(POD.path(namespace, pod, "log"), query)) as pieces:
                async for piece in pieces:
                    yield piece
        except TRANSIENT as error:
            raise self._explained(error, "GET", POD, namespace, pod) from error

    def _explained(self, error: BaseException, verb: str, kind: Kind, namespace: str | None, name: str | None) -> CommandError:
        if isinstance(error, TimeoutError):
            return UnreachableError(f"the API server {self.host} did not answer within {TIMEOUT_SECONDS:g} s: check the network")
        if not isinstance(error, ApiError):
            return UnreachableError(f"cannot reach the API server {self.host}: {error}: check the network or --context")
        where = f" in namespace {namespace}" if namespace else " in all namespaces"
        about = f"{kind.name} {name}{where}" if name else f"{kind.plural}{where}"
        match error.status:
            case 401:
                return CommandError(f"the API server {self.host} does not accept your credentials: log in to the cluster again")
            case 403:
                return ForbiddenError(f"you may not {_action(verb, name)} {kind.plural}{where}: {error.message}")
            case 404 if error.reason != "NotFound":
                return CommandError(f"the cluster does not know the kind {KIND}: install the chart first, see docs/install.md")
            case 404 if f'namespaces "{namespace}"' in error.message:
                return NotFoundError(f"there is no namespace {namespace}: create it, or choose another with -n")
            case 404:
                return NotFoundError(f"there is no {about}: `spinrun get -A` lists all runs")
            case 409:
                return ConflictError(f"conflict with another change of {about}: {error.message}")
            case 400 | 422:
                return InvalidInputError(f"the API server rejected {about}: {_plain(error.message)}")
            case _:
                return UnreachableError(f"the API server {self.host} cannot serve {about} now: {error}; try again later")


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    return not isinstance(error, ApiError) or error.status == 429 or error.status >= 500


def _action(verb: str, name: str | None) -> str:
    """The verb as roles name it."""
    return {"GET": "get" if name else "list", "POST": "create"}.get(verb, verb.lower())


def _plain(message: str) -> str:
    """The fields and what is wrong with them, without what the sentence around it says already."""
    return message.partition(" is invalid: ")[2] or message


def run(access: Access, work: Callable[[Cluster], Awaitable[Result]]) -> Result:
    """Does something with the cluster that is meant.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """

    async def connected() -> Result:
        async with connect(access) as cluster:
            return await work(cluster)

    return asyncio.run(connected())


@asynccontextmanager
async def connect(access: Access) -> AsyncGenerator[Cluster]:
    """The cluster that is meant: by KUBECONFIG or ~/.kube/config, in a pod without them by its service account.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    configuration = client.Configuration()
    try:
        namespace = await _configure(configuration, access)
        api_client = client.ApiClient(configuration)
    # The client library lets the last two out where a file is empty or holds something else than a kubeconfig.
    except (config.ConfigException, yaml.YAMLError, OSError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"the kubeconfig cannot be used: {error}; see `kubectl config get-contexts`") from error
    async with api_client:
        api_client.user_agent = "spinrun"
        api = Api(api_client, request_timeout_seconds=TIMEOUT_SECONDS)
        yield Cluster(api, configuration.host, access.namespace or namespace)


async def _configure(configuration: client.Configuration, access: Access) -> str:
    """Fills the configuration in; returns the namespace to use where none is named. Raises ConfigException and CommandError."""
    # Not the client library's own constant: it was read when the library was imported.
    files = os.environ.get("KUBECONFIG") or "~/.kube/config"
    if _any_exists(files):
        loader = await config.load_kube_config(files, access.context, configuration)
        return loader.current_context["context"].get("namespace") or "default"
    try:
        config.load_incluster_config(configuration)
    except config.ConfigException as error:
        raise CommandError(f"no cluster is configured: there is no {files}; set KUBECONFIG to your cluster's file") from error
    return _read(IN_CLUSTER_NAMESPACE)


def _any_exists(files: str) -> bool:
    """Whether any file of a list as in PATH is there."""
    return any(Path(file).expanduser().is_file() for file in files.split(os.pathsep))


def _read(path: Path) -> str:
    return path.read_text("utf-8").strip()
