"""What a person sees of runs: pure functions from documents to text."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from spinrun_api.documents import InvalidDocumentError, parse_stored_run
from spinrun_api.run import GROUP, PLURAL, SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_cli.errors import CommandError
from spinrun_cli.local.view import duration
from spinrun_kube import names, times

Json = dict[str, Any]

NUM_EVENTS = 10
"""Newest events that are shown of a run."""


def resource_name(name: str) -> str:
    """A run as kubectl names it."""
    return f"{PLURAL}.{GROUP}/{name}"


def pod_labels(document: Json) -> str:
    """Selects the pods of this very run, and not of one of the same name before it."""
    metadata = document["metadata"]
    return f"{names.RUN_LABEL}={metadata['name']},{names.UID_LABEL}={metadata['uid']}"


def parsed(document: Json) -> SpinRun:
    """The run. Raises CommandError for one that another version of SpinRun has written."""
    try:
        return parse_stored_run(document, document["metadata"]["name"])
    except InvalidDocumentError as error:
        raise CommandError(f"{error}: this `spinrun` is of another version than the cluster's; use -o yaml") from error


def ledger_place(document: Json) -> str:
    """Where the ledger is once the run is deleted."""
    try:
        run = parsed(document)
    except CommandError:
        return "its ledger stays, unless storage.retain is false"
    claim, folder, namespace = names.claim_name(run), run.ledger_name(), names.namespace(run)
    if run.spec.storage.claim_name is not None:
        return f"its ledger stays on your claim {claim}, folder {folder}"
    if not run.spec.storage.retain:
        return f"its ledger goes with the claim {claim}, as storage.retain: false asks for"
    return f"its ledger stays on claim {claim}, folder {folder}; to delete it: kubectl delete pvc {claim} -n {namespace}"


# --- tables --------------------------------------------------------------------------------------------------------


def columns(rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells, the first the headings, as kubectl aligns them."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts)
    return "\n".join(lines)


def table_rows(table: Json, *, wide: bool, with_namespace: bool) -> list[list[object]]:
    """The rows of a Table as the API server makes it by the CRD's printer columns, headings first."""
    shown = [number for number, column in enumerate(table["columnDefinitions"]) if wide or not column["priority"]]
    headings: list[object] = [table["columnDefinitions"][number]["name"].upper() for number in shown]
    rows = [headings, *([row["cells"][number] for number in shown] for row in table["rows"])]
    if with_namespace:
        namespaces = ["NAMESPACE", *(row["object"]["metadata"]["namespace"] for row in table["rows"])]
        return [[namespace, *row] for namespace, row in zip(namespaces, rows, strict=True)]
    return rows


def age(then: str | None, now: datetime) -> str:
    """Time since a moment of the API, in its largest unit; empty when there was none."""
    if not then:
        return ""
    seconds = max(0, int((now - datetime.fromisoformat(then)).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


# --- one run -------------------------------------------------------------------------------------------------------


def details(run: SpinRun, pods: Sequence[Json] | str, events: Sequence[Json] | str, now: datetime) -> str:
    """Everything about a run that a person looks for. pods, events: text says why they cannot be shown."""
    status = run.status or SpinRunStatus()
    sections = [
        "\n".join(f"{name + ':':<12}{text}" for name, text in _facts(run, status, now) if text),
        "Conditions:\n" + _indented(columns(_conditions(status, now))),
        "Pods:\n" + _indented(pods if isinstance(pods, str) else columns(_pods(pods, now))),
        "Events:\n" + _indented(events if isinstance(events, str) else columns(_events(events, now))),
    ]
    return "\n\n".join(sections)


def _facts(run: SpinRun, status: SpinRunStatus, now: datetime) -> list[tuple[str, str]]:
    return [
        ("Name", run.metadata.name),
        ("Namespace", names.namespace(run)),
        ("Phase", ", ".join(filter(None, (status.phase or "not seen by the operator yet", status.activity)))),
        ("Window", _of(status.window, status.windows)),
        ("Step", _of(status.step, status.total_steps)),
        ("ETA", _eta(status, now)),
        ("Accuracy", _accuracy(status)),
        ("Figures", _figures(status)),
        ("Rollouts", _rollouts(status)),
        ("Scorers", "" if status.scorers is None else f"{status.scorers.ready} of {status.scorers.desired} ready"),
        ("Attempt", _attempt(run, status)),
        ("Started", status.start_time or ""),
        ("Ended", status.completion_time or ""),
        ("Ledger", f"claim {names.claim_name(run)}, folder {run.ledger_name()}"),
    ]


def _of(done: int | None, total: int | None) -> str:
    return "" if done is None else f"{done} of {total}"


def _eta(status: SpinRunStatus, now: datetime) -> str:
    if status.eta is None:
        return ""
    seconds = (datetime.fromisoformat(status.eta) - now).total_seconds()
    return f"{status.eta} (in {duration(max(0.0, seconds))})"


def _accuracy(status: SpinRunStatus) -> str:
    parts: list[str] = []
    if status.metrics is not None and status.metrics.accuracy is not None:
        parts.append(f"{status.metrics.accuracy:g}")
    if status.best is not None:
        parts.append(f"best {status.best.accuracy:g} by version {status.best.version}")
    return ", ".join(parts)


def _figures(status: SpinRunStatus) -> str:
    if status.metrics is None:
        return ""
    values = status.metrics.model_dump(exclude={"accuracy"}, exclude_none=True)
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items())


def _rollouts(status: SpinRunStatus) -> str:
    if status.rollouts is None:
        return ""
    version = "" if status.rollouts.version is None else f", version {status.rollouts.version}"
    return f"{status.rollouts.ready} of {status.rollouts.desired} ready{version}"


def _attempt(run: SpinRun, status: SpinRunStatus) -> str:
    if status.attempt is None:
        return ""
    return f"{status.attempt}, with {status.failed_attempts or 0} of {run.spec.lifecycle.backoff_limit} failures used up"


def _conditions(status: SpinRunStatus, now: datetime) -> list[Sequence[object]]:
    rows = [
        [each.type, each.status, each.reason, age(each.last_transition_time, now), each.message] for each in status.conditions
    ]
    return [["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], *rows]


def _pods(pods: Sequence[Json], now: datetime) -> list[list[object]]:
    rows: list[list[object]] = []
    for pod in sorted(pods, key=lambda pod: pod["metadata"]["name"]):
        metadata, status = pod["metadata"], pod.get("status", {})
        containers = status.get("containerStatuses") or []
        ready = f"{sum(each['ready'] for each in containers)}/{len(pod['spec']['containers'])}"
        restarts = sum(each["restartCount"] for each in containers)
        rows.append(
            [
                metadata["name"],
                _pod_phase(pod),
                ready,
                restarts,
                age(metadata["creationTimestamp"], now),
                pod["spec"].get("nodeName"),
            ]
        )
    return [["NAME", "STATUS", "READY", "RESTARTS", "AGE", "NODE"], *rows]


def _pod_phase(pod: Json) -> str:
    """Why the pod waits or ended, where a container says so; else its phase."""
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    states = [each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses") or ()]
    stopped = (state.get("waiting") or state.get("terminated") or {} for state in states)
    reasons = [each["reason"] for each in stopped if each.get("reason")]
    return reasons[0] if reasons else pod.get("status", {}).get("phase", "Pending")


def _events(events: Sequence[Json], now: datetime) -> list[Sequence[object]]:
    """The newest events, the last of them at the end."""
    newest = sorted(events, key=times.of_event)[-NUM_EVENTS:]
    rows = [
        [age(times.of_event(event), now), event["type"], event["reason"], event.get("count", 1), event["message"]]
        for event in newest
    ]
    return [["LAST", "TYPE", "REASON", "COUNT", "MESSAGE"], *rows]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
