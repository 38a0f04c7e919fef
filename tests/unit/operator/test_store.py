"""What is known of the SpinRuns, in whatever order news comes."""

import copy
from typing import Any

from spinrun_operator.store import RunStore
from unit.operator.world import run_of

Json = dict[str, Any]

KEY = ("team", "demo")


def body(version: int, *, name: str = "demo", namespace: str = "team", uid: str = "u", **status: Any) -> Json:
    """A SpinRun as the API server says it."""
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version), "managedFields": [{}]}
    return {"metadata": metadata, "status": status}


class FakeApi:
    """An API server with these runs."""

    def __init__(self, *runs: Json) -> None:
        self.runs = list(runs)

    async def get(self, _: Any, namespace: str, name: str) -> Json | None:
        found = [run for run in self.runs if (run["metadata"]["namespace"], run["metadata"]["name"]) == (namespace, name)]
        return found[0] if found else None


def store_of(api: FakeApi, *known: Json) -> RunStore:
    """A store that knows these runs."""
    store = RunStore(api)  # type: ignore[arg-type]
    for run in known:
        assert store.put(run)
    return store


def version_in(store: RunStore) -> str | None:
    """The version of the run that is known."""
    known = store.get(KEY)
    return None if known is None else known["metadata"]["resourceVersion"]


def test_only_a_newer_version_is_news() -> None:
    store = store_of(FakeApi(), body(7))
    assert [store.put(body(version)) for version in (6, 7, 8)] == [False, False, True]
    assert version_in(store) == "8"
    assert "managedFields" not in (store.get(KEY) or {})["metadata"]


def test_deletion_of_an_earlier_run_does_not_take_out_its_namesake() -> None:
    store = store_of(FakeApi(), body(9, uid="second"))
    store.remove(body(8, uid="first"))
    assert store.keys() == [KEY]
    store.remove(body(10, uid="second"))
    assert store.keys() == []


def test_runs_are_those_of_a_namespace_or_all() -> None:
    other = body(80, name="other", namespace="elsewhere")
    store = store_of(FakeApi(), body(95), other)
    assert [each["metadata"]["name"] for each in store.bodies("elsewhere")] == ["other"]
    assert [each["metadata"]["name"] for each in store.bodies(None)] == ["demo", "other"]


async def test_run_is_read_again_or_found_to_be_gone() -> None:
    api = FakeApi(body(9))
    store = store_of(api, body(7))
    await store.refresh(KEY)
    assert version_in(store) == "9"
    api.runs = []
    await store.refresh(KEY)
    assert version_in(store) is None


def test_status_that_this_operator_writes_is_no_news_when_the_watch_is_faster_than_the_answer() -> None:
    store = store_of(FakeApi(), body(7))
    written = body(8, phase="Running")
    assert not store.is_ours(written)
    with store.writing(KEY, {"phase": "Running"}):
        assert store.is_ours(written)
        assert not store.is_ours(body(8, phase="Failed")), "another's status"
        changed = body(8, phase="Running")
        changed["metadata"]["generation"] = 2
        assert not store.is_ours(changed), "another's spec"
    assert not store.is_ours(written)
    store.put(written)
    assert store.is_ours(body(9, phase="Running")), "managed fields, for one, have changed"


def test_model_is_made_again_only_when_more_than_the_status_has_changed() -> None:
    document = run_of().to_document()
    run = document | {"metadata": document["metadata"] | {"resourceVersion": "1"}}
    store = store_of(FakeApi(), run)
    first = store.model(KEY)
    later = run | {"metadata": run["metadata"] | {"resourceVersion": "2"}, "status": {"phase": "Running", "attempt": 1}}
    store.put(copy.deepcopy(later))
    second = store.model(KEY)
    assert second.spec is first.spec
    assert second.status is not None
    assert (second.status.phase, second.status.attempt) == ("Running", 1)
    labelled = later["metadata"] | {"resourceVersion": "3", "labels": {"team": "a"}}
    store.put(later | {"metadata": labelled})
    assert store.model(KEY).metadata.labels == {"team": "a"}
    spec = run["spec"] | {"rollout": {"replicas": 3}}
    store.put(later | {"metadata": labelled | {"resourceVersion": "4"}, "spec": spec})
    assert store.model(KEY).spec.rollout.replicas == 3


def test_phase_is_unknown_until_the_operator_has_written_one() -> None:
    store = store_of(FakeApi(), body(1), body(1, name="other", phase="Running"))
    assert list(store.phases()) == [("team", "demo", "Unknown"), ("team", "other", "Running")]
