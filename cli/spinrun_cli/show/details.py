"""What a person sees of runs: pure functions from documents to text."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
from spinrun_cli.show.text import age_since, duration, table
from spinrun_kube import names, times

Json = dict[str, Any]

NUM_EVENTS = 10
"""Newest events that are shown of a run."""


# --- tables --------------------------------------------------------------------------------------------------------


def table_rows(answer: Json, *, wide: bool, with_namespace: bool) -> list[list[object]]:
    """The rows of a Table as the API server makes it by the CRD's printer columns, headings first."""
    shown = [number for number, column in enumerate(answer["columnDefinitions"]) if wide or not column["priority"]]
    headings: list[object] = [answer["columnDefinitions"][number]["name"].upper() for number in shown]
    rows = [headings, *([row["cells"][number] for number in shown] for row in answer["rows"])]
    if with_namespace:
        namespaces = ["NAMESPACE", *(row["object"]["metadata"]["namespace"] for row in answer["rows"])]
        return [[namespace, *row] for namespace, row in zip(namespaces, rows, strict=True)]
    return rows


# --- one run -------------------------------------------------------------------------------------------------------


def details(run: SpinRun, pods: Sequence[Json] | str, events: Sequence[Json] | str, now: datetime) -> str:
    """Everything about a run that a person looks for. pods, events: text says why they cannot be shown."""
    status = run.status or SpinRunStatus()
    sections = [
        "\n".join(f"{name + ':':<12}{text}" for name, text in _facts(run, status, now) if text),
        "Conditions:\n" + _indented(table(_conditions(status, now))),
        "Pods:\n" + _indented(pods if isinstance(pods, str) else table(_pods(pods, now))),
        "Events:\n" + _indented(events if isinstance(events, str) else table(_events(events, now))),
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
        [each.type, each.status, each.reason, age_since(each.last_transition_time, now), each.message]
        for each in status.conditions
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
                age_since(metadata["creationTimestamp"], now),
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
        [age_since(times.of_event(event), now), event["type"], event["reason"], event.get("count", 1), event["message"]]
        for event in newest
    ]
    return [["LAST", "TYPE", "REASON", "COUNT", "MESSAGE"], *rows]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
