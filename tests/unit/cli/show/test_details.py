"""What `spinrun get` prints, from documents as the API server sends them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_cli.cluster.runs import ledger_place
from spinrun_cli.show.details import details, table_rows
from spinrun_cli.show.text import age_since, table
from unit.api.invalid_runs import MINIMAL

Json = dict[str, Any]

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def spin_run(storage: Json | None = None, **status: Any) -> Json:
    """A run as the API server has it."""
    metadata = {"name": "demo", "namespace": "team", "uid": "867d5e77-d3e6-4e11-a237-d1297dc28ef8"}
    spec = MINIMAL["spec"] | ({"storage": storage} if storage else {})
    return MINIMAL | {"metadata": metadata, "spec": spec} | ({"status": status} if status else {})


def pod(name: str, state: Json, *, deleted: bool = False, **container: Any) -> Json:
    """A pod with one container."""
    metadata = {"name": name, "creationTimestamp": "2026-01-01T11:00:00Z"} | ({"deletionTimestamp": "x"} if deleted else {})
    status = {"name": "trainer", "ready": False, "restartCount": 0, "state": state} | container
    return {
        "metadata": metadata,
        "spec": {"containers": [{}], "nodeName": "node-1"},
        "status": {"phase": "Running", "containerStatuses": [status]},
    }


def event(number: int, **fields: Any) -> Json:
    """An event of a minute of the last hour."""
    when = {"lastTimestamp": f"2026-01-01T11:{number:02}:00Z", "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}
    return when | {"type": "Normal", "reason": f"Reason{number}", "message": f"message {number}"} | fields


def lines(document: Json, pods: list[Json] | str = "", events: list[Json] | str = "") -> list[str]:
    """The view of a run, its spaces made one."""
    return [" ".join(line.split()) for line in details(parse_run(document), pods, events, NOW).splitlines()]


def test_running_run_shows_figures_eta_and_ledger() -> None:
    shown = lines(
        spin_run(
            phase="Running",
            activity="train",
            window=2,
            windows=8,
            step=33,
            totalSteps=128,
            attempt=2,
            failedAttempts=1,
            rollouts={"ready": 1, "desired": 2, "version": 2},
            scorers={"ready": 0, "desired": 1},
            metrics={"loss": 0.6931, "accuracy": 0.75, "samplesPerSecond": 12.5},
            best={"window": 1, "version": 1, "accuracy": 0.8},
            eta="2026-01-01T12:10:00Z",
            startTime="2026-01-01T11:00:00Z",
        )
    )
    assert shown[:13] == [
        "Name: demo",
        "Namespace: team",
        "Phase: Running, train",
        "Window: 2 of 8",
        "Step: 33 of 128",
        "ETA: 2026-01-01T12:10:00Z (in 10 min 0 s)",
        "Accuracy: 0.75, best 0.8 by version 1",
        "Figures: loss 0.6931, samples per second 12.5",
        "Rollouts: 1 of 2 ready, version 2",
        "Scorers: 0 of 1 ready",
        "Attempt: 2, with 1 of 6 failures used up",
        "Started: 2026-01-01T11:00:00Z",
        "Ledger: claim demo-ledger, folder team/demo-867d5e77",
    ]


def test_run_that_nobody_has_looked_at_says_so() -> None:
    shown = lines(spin_run())
    assert shown[2] == "Phase: not seen by the operator yet"
    assert shown[3] == "Ledger: claim demo-ledger, folder team/demo-867d5e77"


def test_conditions_are_shown_with_reason_and_message() -> None:
    trouble = {"type": "Degraded", "status": "True", "reason": "QuotaExceeded", "message": "raise the quota"}
    shown = lines(spin_run(conditions=[trouble | {"lastTransitionTime": "2026-01-01T11:55:00Z"}]))
    assert shown[shown.index("Conditions:") + 2] == "Degraded True QuotaExceeded 5m raise the quota"


@pytest.mark.parametrize(
    ("state", "extra", "want"),
    [
        ({"running": {}}, {"ready": True}, "demo-trainer-1 Running 1/1 0 60m node-1"),
        ({"waiting": {"reason": "ImagePullBackOff"}}, {}, "demo-trainer-1 ImagePullBackOff 0/1 0 60m node-1"),
        ({"terminated": {"reason": "OOMKilled"}}, {"restartCount": 3}, "demo-trainer-1 OOMKilled 0/1 3 60m node-1"),
        ({"running": {}}, {"deleted": True}, "demo-trainer-1 Terminating 0/1 0 60m node-1"),
    ],
)
def test_pod_is_shown_with_what_it_waits_for_or_ended_by(state: Json, extra: Json, want: str) -> None:
    shown = lines(spin_run(), pods=[pod("demo-trainer-1", state, **extra)])
    assert shown[shown.index("Pods:") + 2] == want


def test_only_the_newest_events_are_shown_the_last_at_the_end() -> None:
    shown = lines(spin_run(), events=[event(number) for number in range(30, 10, -1)])
    after = shown[shown.index("Events:") + 2 :]
    assert len(after) == 10
    assert (after[0], after[-1]) == ("39m Normal Reason21 1 message 21", "30m Normal Reason30 1 message 30")


def test_what_cannot_be_shown_says_why() -> None:
    shown = lines(spin_run(), pods="you may not list pods", events="you may not list events")
    assert shown[shown.index("Pods:") + 1] == "you may not list pods"
    assert shown[shown.index("Events:") + 1] == "you may not list events"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (
            {"size": "1Gi"},
            "stays on claim demo-ledger, folder team/demo-867d5e77; to delete it: kubectl delete pvc demo-ledger -n team",
        ),
        ({"size": "1Gi", "retain": False}, "is deleted with the claim demo-ledger"),
        ({"claimName": "shared"}, "stays on your claim shared, folder team/demo-867d5e77"),
    ],
)
def test_deleted_run_says_where_its_ledger_is(storage: Json, words: str) -> None:
    assert words in ledger_place(spin_run(storage))


def test_deletion_does_not_need_to_understand_the_run() -> None:
    assert ledger_place(spin_run({"tape": 7})) == "its ledger stays, unless storage.retain is false"


TABLE: Json = {
    "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Phase", "priority": 0}, {"name": "Loss", "priority": 1}],
    "rows": [
        {"cells": ["demo", "Running", 0.5], "object": {"metadata": {"namespace": "team"}}},
        {"cells": ["long-name", None, None], "object": {"metadata": {"namespace": "default"}}},
    ],
}


def test_columns_are_aligned_and_absent_cells_empty() -> None:
    assert table(table_rows(TABLE, wide=False, with_namespace=False)).splitlines() == [
        "NAME        PHASE",
        "demo        Running",
        "long-name",
    ]


def test_wide_table_of_all_namespaces_has_further_columns() -> None:
    rows = table_rows(TABLE, wide=True, with_namespace=True)
    assert rows[:2] == [["NAMESPACE", "NAME", "PHASE", "LOSS"], ["team", "demo", "Running", 0.5]]


@pytest.mark.parametrize(
    ("then", "want"),
    [
        ("2026-01-01T11:59:57Z", "3s"),
        ("2026-01-01T11:58:01Z", "119s"),
        ("2026-01-01T11:50:00Z", "10m"),
        ("2025-12-31T09:00:00Z", "27h"),
        ("2025-12-01T12:00:00Z", "31d"),
        ("2026-01-01T12:00:09Z", "0s"),
        (None, ""),
    ],
)
def test_age_is_in_its_largest_unit(then: str | None, want: str) -> None:
    assert age_since(then, NOW) == want
