"""`spinrun events`: the Events of a run and its children, in the order of time."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from spinrun_api.run import KIND
from spinrun_cli.cluster.client import Access, Cluster, run
from spinrun_cli.output import echo, echo_json
from spinrun_cli.show.text import age_since, printable, table
from spinrun_kube import names, times
from spinrun_kube.kinds import EVENT, SPIN_RUN

Json = dict[str, Any]


def show_events(name: str, access: Access, *, as_json: bool) -> None:
    """Prints the Events.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    run(access, partial(_show, name, as_json))


async def _show(name: str, as_json: bool, cluster: Cluster) -> None:
    document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
    found = events_of(document, await cluster.items(EVENT, cluster.namespace))
    if as_json:
        echo_json({"items": [_document(event) for event in found]}, indent=2)
    elif found:
        echo(table(_rows(found, times.utc_now())))
    else:
        echo(f"There are no events for {name}: the API server deletes them, by default after an hour.", err=True)


def events_of(document: Json, events: Sequence[Json]) -> list[Json]:
    """The Events of a run and its children out of those of its namespace, the newest at the end.

    Children are known by their names: many are gone when one reads of them.
    """
    metadata = document["metadata"]

    def belongs(event: Json) -> bool:
        about = event["involvedObject"]
        if about.get("kind") == KIND:
            return about.get("uid") == metadata["uid"]
        # A run of the same name before this one had children of the same names.
        is_child = names.is_child_of(metadata["name"], about.get("kind", ""), about.get("name", ""))
        return is_child and times.of_event(event) >= metadata["creationTimestamp"]

    return sorted(filter(belongs, events), key=times.of_event)


def _document(event: Json) -> Json:
    return {
        "time": times.of_event(event),
        "type": event.get("type"),
        "reason": event.get("reason"),
        "object": _about(event),
        "count": event.get("count") or 1,
        "message": event.get("message"),
    }


def _rows(events: Sequence[Json], now: datetime) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [["LAST", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"]]
    for event in map(_document, events):
        message = " ".join(printable(event["message"] or "").split())
        rows.append([age_since(event["time"], now), event["type"], event["reason"], event["object"], event["count"], message])
    return rows


def _about(event: Json) -> str:
    about = event["involvedObject"]
    return f"{about.get('kind', '')}/{about.get('name', '')}"
