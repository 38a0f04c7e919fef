"""`spinrun get`: runs as a table, as documents, or one of them in full."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from spinrun_cli.cluster.client import Access, Cluster, ForbiddenError, run
from spinrun_cli.cluster.follow import POLL_SECONDS
from spinrun_cli.cluster.runs import parsed, pod_labels, resource_name
from spinrun_cli.output import echo, echo_json, echo_yaml
from spinrun_cli.queries import GetQuery
from spinrun_cli.show.details import details, table_rows
from spinrun_cli.show.text import table
from spinrun_kube import times
from spinrun_kube.kinds import EVENT, POD, SPIN_RUN, Kind

Json = dict[str, Any]

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def get_runs(query: GetQuery, access: Access) -> None:
    """Prints runs.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    run(access, partial(_get, query))


async def _get(query: GetQuery, cluster: Cluster) -> None:
    namespace = None if query.all_namespaces else cluster.namespace
    if query.output in ("json", "yaml", "name"):
        _print_document(await cluster.request("GET", SPIN_RUN, namespace, query.name), query.output)
    elif query.name is None or query.output == "wide" or query.watch:
        await _tabulate(query, namespace, cluster)
    else:
        echo(await _details(query.name, cluster))


# --- documents -----------------------------------------------------------------------------------------------------


def _print_document(answer: Json, output: str) -> None:
    """Prints a run, or the runs of a list, in a form for programs."""
    runs = [_without_managed_fields(each) for each in answer.get("items", [answer])]
    document = {"apiVersion": "v1", "kind": "List", "items": runs} if "items" in answer else runs[0]
    if output == "name":
        echo("\n".join(resource_name(each["metadata"]["name"]) for each in runs))
    elif output == "json":
        echo_json(document, indent=2)
    else:
        echo_yaml(document)


def _without_managed_fields(run: Json) -> Json:
    """As kubectl shows it: who set which field is of no use to a reader."""
    return run | {"metadata": {key: value for key, value in run["metadata"].items() if key != "managedFields"}}


# --- tables --------------------------------------------------------------------------------------------------------


async def _tabulate(query: GetQuery, namespace: str | None, cluster: Cluster) -> None:
    """Prints the table; with `watch`, also every row that changes from then on."""
    shown: dict[str, str] | None = None
    while True:
        answer = await cluster.request("GET", SPIN_RUN, namespace, query.name, accept=TABLE)
        versions = {row["object"]["metadata"]["uid"]: row["object"]["metadata"]["resourceVersion"] for row in answer["rows"]}
        rows = table_rows(answer, wide=query.output == "wide", with_namespace=query.all_namespaces)
        headings, *lines = table(rows).splitlines()
        if shown is None and lines:
            echo(headings)
        for (uid, version), line in zip(versions.items(), lines, strict=True):
            if (shown or {}).get(uid) != version:
                echo(line)
        if not lines and not query.watch:
            where = f"namespace {namespace}" if namespace else "any namespace"
            echo(f"No SpinRuns found in {where}.", err=True)
        if not query.watch:
            return
        shown = versions if shown or lines else None
        await asyncio.sleep(POLL_SECONDS)


# --- one run -------------------------------------------------------------------------------------------------------


async def _details(name: str, cluster: Cluster) -> str:
    document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    pods = await _related(POD, cluster, labelSelector=pod_labels(document))
    events = await _related(EVENT, cluster, fieldSelector=f"involvedObject.uid={document['metadata']['uid']}")
    return details(parsed(document), pods, events, times.utc_now())


async def _related(kind: Kind, cluster: Cluster, **selector: str) -> Sequence[Json] | str:
    """What belongs to the run, or why it cannot be shown: who may see a run may not be allowed to see all of its parts."""
    try:
        return await cluster.items(kind, cluster.namespace, **selector)
    except ForbiddenError as error:
        return str(error)
