"""The live copy of the cluster's objects."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from spinrun_kube.answers import InvalidAnswerError
from spinrun_kube.api import ApiError
from spinrun_kube.kinds import CHILDREN, CLAIM, CONFIG_MAP, JOB, POD, SECRET, STATEFUL_SET, Kind
from spinrun_operator import backoff
from spinrun_operator import informer as room
from spinrun_operator.informer import Informer, slim
from spinrun_operator.metrics import Metrics
from unit.operator.world import SETTINGS

Json = dict[str, Any]

KEY = ("team", "demo")
RUN = "uid-of-the-run"
SERVICE = next(kind for kind in CHILDREN if kind.name == "Service")


def child(version: int, *, name: str = "demo-rollout", uid: str = "u", owner: str | None = RUN, **body: Any) -> Json:
    """A child of a run, or what looks like one."""
    metadata: Json = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"spinrun.dev/run": "demo"},
        "managedFields": [{}],
    }
    if owner is not None:
        metadata["ownerReferences"] = [{"kind": "SpinRun", "name": "demo", "uid": owner, "controller": True}]
    return {"metadata": metadata, **body}


class FakeApi:
    """Lists and watches that a test scripts: what each list holds, and what follows it."""

    def __init__(self, *rounds: tuple[Sequence[Json], Sequence[Json | Exception]]) -> None:
        self.rounds = list(rounds)
        self.done = asyncio.Event()
        self.asked: list[Json] = []

    async def pages(self, *_: Any, **asked: Any) -> AsyncGenerator[tuple[Sequence[Json], str]]:
        self.asked.append(asked)
        if not self.rounds:
            self.done.set()
            await asyncio.get_running_loop().create_future()
        items, self.events = self.rounds.pop(0)
        yield items[:1], "100"
        yield items[1:], "100"

    async def watch(self, *_: Any, **__: Any) -> AsyncGenerator[Json]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists follow each other at once."""
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.005)


def informer_of(api: Any, changed: list[Any], kind: Kind = SERVICE, owners: Sequence[str] = (RUN,)) -> Informer:
    """An informer that notes which runs have changed."""
    return Informer(
        api, kind, None, SETTINGS, Metrics(), owners=lambda _: owners, on_change=changed.append, on_gone=lambda _: None
    )


async def run_through(informer: Informer, api: FakeApi) -> None:
    """Runs an informer until the rounds are over."""
    task = asyncio.create_task(informer.follower.run())
    async with asyncio.timeout(10):
        await api.done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def follow(*rounds: tuple[Sequence[Json], Sequence[Json | Exception]]) -> tuple[Informer, list[Any]]:
    """An informer that has seen the rounds."""
    api, changed = FakeApi(*rounds), []
    informer = informer_of(api, changed)
    await run_through(informer, api)
    return informer, changed


def seen(informer: Informer) -> list[str]:
    """Name and version of what is known."""
    return sorted(f"{each['metadata']['name']}@{each['metadata']['resourceVersion']}" for each in informer.of_run(KEY))


async def test_list_and_watch_make_the_copy() -> None:
    events = [
        {"type": "ADDED", "object": child(101, name="demo-trainer", uid="v")},
        {"type": "MODIFIED", "object": child(102, spec={"ports": []})},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "103"}}},
        {"type": "DELETED", "object": child(104, name="demo-trainer", uid="v")},
    ]
    informer, changed = await follow(([child(99)], events))
    assert seen(informer) == ["demo-rollout@102"]
    assert changed == [KEY] * 3, "the one that was added is our own doing"
    assert informer.follower.synced.is_set()


async def test_older_and_doubled_events_are_no_news() -> None:
    events = [{"type": "MODIFIED", "object": child(version, spec={"ports": [version]})} for version in (105, 103, 105)]
    informer, changed = await follow(([child(99)], events))
    assert seen(informer) == ["demo-rollout@105"]
    assert len(changed) == 2


async def test_late_event_does_not_bring_back_what_is_deleted() -> None:
    events = [{"type": "DELETED", "object": child(103)}, {"type": "MODIFIED", "object": child(102)}]
    informer, _ = await follow(([child(99)], events))
    assert seen(informer) == []


async def test_next_list_finds_what_events_missed() -> None:
    gone = child(90, name="demo-trainer", uid="g")
    informer, changed = await follow(([child(80), gone], []), ([child(95, spec={"ports": []})], []))
    assert seen(informer) == ["demo-rollout@95"]
    assert len(changed) == 4


@pytest.mark.parametrize(
    "error",
    [
        ApiError(410, "Expired", ""),
        ApiError(500, "", ""),
        TimeoutError(),
        ConnectionResetError(),
        InvalidAnswerError(""),
        KeyError("ours"),
        RecursionError(),
    ],
)
async def test_broken_watch_is_followed_by_another_list(error: Exception) -> None:
    informer, _ = await follow(([child(80)], [error]), ([child(99)], []))
    assert seen(informer) == ["demo-rollout@99"]


async def test_own_write_is_known_at_once_and_a_list_from_before_does_not_forget_it() -> None:
    changed: list[Any] = []
    informer = informer_of(FakeApi(), changed)
    assert informer.put(child(150))
    assert not informer.put(child(150))
    assert changed == []
    assert seen(informer) == ["demo-rollout@150"]


def test_what_is_in_a_secret_is_not_kept() -> None:
    secret = child(1) | {"data": {"token": "x"}}
    assert "data" not in slim(secret, SECRET)


def test_copy_keeps_of_a_pod_what_is_read() -> None:
    spec = {"nodeName": "n", "containers": [{"name": "a", "image": "i", "resources": {"limits": {}}}], "volumes": [{}]}
    pod = slim({"metadata": child(1)["metadata"], "spec": spec, "status": {"phase": "Running"}}, POD)
    assert pod["spec"] == {"nodeName": "n", "containers": [{"name": "a", "resources": {"limits": {}}}]}
    assert "managedFields" not in pod["metadata"]


def test_copy_keeps_the_limits_of_init_containers() -> None:
    limits = {"limits": {"memory": "1Gi"}}
    spec = {"initContainers": [{"name": "fetch", "image": "i", "resources": limits}], "containers": [{"name": "a"}]}
    pod = slim({"metadata": child(1)["metadata"], "spec": spec}, POD)
    assert pod["spec"]["initContainers"] == [{"name": "fetch", "resources": limits}]


def test_copy_keeps_of_a_job_what_is_read() -> None:
    spec = {"parallelism": 2, "completions": 2, "template": {"spec": {"containers": [{}]}}}
    job = slim(child(1, spec=spec, status={"succeeded": 1}), JOB)
    assert (job["spec"], job["status"]) == ({"parallelism": 2, "completions": 2}, {"succeeded": 1})


def test_copy_keeps_of_labels_and_annotations_what_is_ours() -> None:
    document = child(1)
    document["metadata"]["annotations"] = {"spinrun.dev/applied-hash": "x", "kubectl.kubernetes.io/last-applied": "y" * 1000}
    assert slim(document, SERVICE)["metadata"]["annotations"] == {"spinrun.dev/applied-hash": "x"}


def test_copies_share_the_texts_that_they_have_in_common() -> None:
    informer = informer_of(FakeApi(), [])
    for name in ("demo-rollout", "demo-trainer"):
        informer.put(child(1, name=name, uid=name, spec=json.loads('{"ports": [{"name": "agent"}]}')))
    first, second = informer.of_run(KEY)
    (one,), (other,) = first["spec"]["ports"], second["spec"]["ports"]
    assert one["name"] is other["name"]
    informer.put(child(2, uid="demo-rollout", spec=json.loads('{"ports": [{"name": "agent"}]}'), status={"x": 1}))
    assert informer.of_run(KEY)[0]["spec"] is first["spec"], "it is kept while only the status changes"
    assert informer.of_run(KEY)[0]["status"] == {"x": 1}


# --- whose an object is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "foreign",
    [
        child(99, owner=None),
        child(99, owner="another"),
        child(99, owner=""),
        child(99, name="evil"),
        child(99, name="demo"),
        child(99, name="demo-rollout-0"),
        child(99, name="demo-trainer-1"),
        child(99, name="demo-two-rollout"),
        child(99) | {"metadata": child(99)["metadata"] | {"labels": {"spinrun.dev/run": "other"}}},
        child(99) | {"metadata": child(99)["metadata"] | {"labels": {}}},
        child(99) | {"metadata": child(99)["metadata"] | {"ownerReferences": [{"uid": RUN, "controller": False}]}},
    ],
    ids=["no owner", "another owner", "empty owner", *["name of no child"] * 5, "other run", "no label", "not its controller"],
)
@pytest.mark.parametrize("way", ["listed", "watched"])
async def test_object_with_our_label_that_is_not_ours_is_not_kept(foreign: Json, way: str) -> None:
    event = {"type": "ADDED", "object": foreign}
    informer, changed = await follow(([foreign] if way == "listed" else [], [] if way == "listed" else [event]))
    assert list(informer.known()) == []
    assert changed == []


async def test_object_that_is_kept_is_followed_though_its_owner_is_gone() -> None:
    owners = [RUN]
    informer = informer_of(FakeApi(), [], owners=owners)
    informer.put(child(1))
    owners.clear()
    assert informer.put(child(2))
    assert seen(informer) == ["demo-rollout@2"]


async def test_child_that_came_before_its_run_is_read_once_the_run_is_known() -> None:
    owners: list[str] = []
    api = FakeApi(([child(99)], []), ([child(99)], []))
    informer = informer_of(api, [], owners=owners)
    api.rounds, later = api.rounds[:1], api.rounds[1:]
    await run_through(informer, api)
    await informer.catch_up(KEY)
    assert len(api.asked) == 2, "nobody asks for the children of a run that is not known"
    owners.append(RUN)
    api.rounds = later
    await informer.catch_up(KEY)
    assert seen(informer) == ["demo-rollout@99"]
    assert api.asked[-1]["labels"] == "spinrun.dev/run=demo"
    await informer.catch_up(KEY)
    assert len(api.asked) == 3, "nothing is left to be read again"


async def test_forged_owners_do_not_make_it_ask_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REMEMBERED_OWNERS", 10)
    api = FakeApi(([child(99, uid=f"u{number}", owner=f"o{number}") for number in range(1000)], []))
    informer = informer_of(api, [])
    await run_through(informer, api)
    for _ in range(10):
        await informer.catch_up(KEY)
    assert len(api.asked) == 2
    assert len(informer._unknown_owners) == 10


async def test_claim_that_an_earlier_run_has_left_is_kept_for_the_run_of_its_name() -> None:
    owners: list[str] = []
    left = child(9, name="demo-ledger", owner=None)
    api = FakeApi(([left], []), ([left], []))
    informer = informer_of(api, [], CLAIM, owners)
    api.rounds, later = api.rounds[:1], api.rounds[1:]
    await run_through(informer, api)
    assert list(informer.known()) == []
    owners.append(RUN)
    api.rounds = later
    await informer.catch_up(KEY)
    assert seen(informer) == ["demo-ledger@9"]


async def test_pods_are_kept_by_their_makers_whatever_their_name() -> None:
    informer = informer_of(FakeApi(), [], POD, ["job", "statefulset"])
    pods = [child(1, name="cut-by-its-controller", owner="job"), child(2, name="b", uid="v", owner=RUN)]
    assert [informer.put(pod) for pod in pods] == [True, False]


async def test_no_more_than_so_many_objects_of_a_run_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_OF_A_RUN", 3)
    informer = informer_of(FakeApi(), [], JOB)
    jobs = [child(number, name=f"demo-trainer-{number}", uid=f"u{number}") for number in range(1, 6)]
    assert [informer.put(job) for job in jobs] == [True, True, True, False, False]
    assert informer.put(child(9, name="demo-trainer-1", uid="u1")), "what is kept is followed"


async def test_deletion_of_what_had_a_childs_name_wakes_the_run() -> None:
    _, changed = await follow(([], [{"type": "DELETED", "object": child(101, owner="earlier")}]))
    assert changed == [KEY]


async def test_object_that_a_list_missed_comes_back_with_the_next() -> None:
    informer, _ = await follow(([child(80)], []), ([], []), ([child(80)], []))
    assert seen(informer) == ["demo-rollout@80"]


@pytest.mark.parametrize(("kind", "wanted"), [(SECRET, True), (CONFIG_MAP, True), (SERVICE, False), (POD, False)])
async def test_metadata_is_enough_where_nothing_else_is_read(kind: Kind, wanted: bool) -> None:
    api = FakeApi()
    informer = informer_of(api, [], kind)
    await run_through(informer, api)
    assert api.asked[0]["metadata_only"] is wanted


# --- what wakes ----------------------------------------------------------------------------------------------------


def with_status(kind: Kind, version: int, **status: Any) -> Json:
    """An object of a run with a status."""
    name = {POD: "demo-trainer-1-0-abcde", JOB: "demo-trainer-1", STATEFUL_SET: "demo-rollout", CLAIM: "demo-ledger"}[kind]
    return child(version, name=name, owner="job" if kind == POD else RUN, spec={}, status=status)


RUNNING: Json = {"phase": "Running", "containerStatuses": [{"name": "trainer", "ready": False, "state": {"running": {}}}]}
CREATING: Json = {"phase": "Pending", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]}
NO_IMAGE: Json = {"phase": "Pending", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ErrImagePull"}}}]}
SCHEDULED: Json = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
UNSCHEDULABLE: Json = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "full"}]}
NO_CLAIM: Json = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "message": 'persistentvolumeclaim "a" not found'}],
}
READY: Json = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("kind", "before", "after", "wakes"),
    [
        (POD, None, {"phase": "Pending"}, False),
        (POD, None, SCHEDULED, False),
        (POD, None, UNSCHEDULABLE, False),
        (POD, UNSCHEDULABLE, NO_CLAIM, True),
        (POD, None, RUNNING, True),
        (POD, SCHEDULED, CREATING, False),
        (POD, CREATING, RUNNING, True),
        (POD, CREATING, NO_IMAGE, True),
        (POD, RUNNING, RUNNING | READY, False),
        (POD, RUNNING, RUNNING | {"podIP": "10.0.0.1"}, True),
        (POD, RUNNING, RUNNING | {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}, True),
        (POD, RUNNING, {"phase": "Failed", "reason": "Evicted"}, True),
        (STATEFUL_SET, None, {}, False),
        (STATEFUL_SET, {}, {"observedGeneration": 1, "currentReplicas": 1, "replicas": 1}, False),
        (STATEFUL_SET, {"replicas": 1}, {"replicas": 1, "readyReplicas": 1}, True),
        (JOB, {"active": 1}, {"active": 1, "ready": 1}, False),
        (JOB, {"active": 1}, {"conditions": [{"type": "Failed", "status": "True"}]}, True),
        (CLAIM, {"phase": "Pending"}, {"phase": "Bound", "capacity": {"storage": "1Gi"}}, False),
        (CLAIM, {"phase": "Bound"}, {"phase": "Lost"}, True),
    ],
)
async def test_only_what_may_change_a_decision_wakes_the_run(kind: Kind, before: Json | None, after: Json, wakes: bool) -> None:
    changed: list[Any] = []
    informer = informer_of(FakeApi(), changed, kind, owners=(RUN, "job"))
    if before is not None:
        informer.put(with_status(kind, 1, **before))
    informer.take("ADDED" if before is None else "MODIFIED", with_status(kind, 2, **after))
    assert (changed == [KEY]) is wakes
    (kept,) = informer.known()
    assert kept["status"] == after, "it is taken in all the same"


async def test_deleted_pod_wakes_the_run_as_soon_as_it_is_to_end() -> None:
    changed: list[Any] = []
    informer = informer_of(FakeApi(), changed, POD, owners=("job",))
    informer.put(with_status(POD, 1, **RUNNING))
    ending = with_status(POD, 2, **RUNNING)
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    informer.take("MODIFIED", ending)
    informer.take("DELETED", ending)
    assert changed == [KEY, KEY]


async def test_config_map_that_somebody_changed_wakes_the_run_though_its_metadata_is_the_same() -> None:
    changed: list[Any] = []
    informer = informer_of(FakeApi(), changed, CONFIG_MAP)
    informer.put(child(1, name="demo-run"))
    informer.take("MODIFIED", child(2, name="demo-run"))
    assert changed == [KEY]


# --- what people are told ------------------------------------------------------------------------------------------


async def test_failures_of_a_kind_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rounds: list[Any] = [
        ([], [error]) for error in (ApiError(500, "", "away"), InvalidAnswerError("HTML"), ApiError(410, "", ""))
    ]
    informer, _ = await follow(*rounds * 5)
    told = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in told] == [
        "watch of services, refused",
        "watch of services, invalid",
        "watch of services, expired",
    ]
    text = informer._metrics.text().decode()
    assert 'spinrun_operator_watch_failures_total{reason="invalid",resource="services"} 5.0' in text


async def test_one_odd_object_does_not_keep_the_others_from_being_seen(caplog: pytest.LogCaptureFixture) -> None:
    odd = [{"metadata": 7}, child(1, name="demo-trainer", uid="v", spec=7), child(2) | {"kind": "Pod"}]
    informer, _ = await follow(([*odd, child(99)], []), ([*odd, child(99)], []))
    assert seen(informer) == ["demo-rollout@99"]
    assert len([record for record in caplog.records if "left out" in record.getMessage()]) == 1


async def test_pod_of_another_shape_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pods = [child(1, owner="job", spec={"containers": [7]}), child(2, name="b", uid="v", owner="job")]
    api = FakeApi((pods, []))
    informer = informer_of(api, [], POD, ["job"])
    await run_through(informer, api)
    assert seen(informer) == ["b@2"]
