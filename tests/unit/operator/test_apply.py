"""What is applied, and what is left alone because it is as wanted or somebody else's."""

from typing import Any

import pytest

from spinrun_kube.api import ApiError
from spinrun_operator.apply import Applier
from spinrun_operator.children.run_config import run_config
from spinrun_operator.children.services import rollout_service
from spinrun_operator.children.token_secret import token_secret
from unit.operator.world import run_of

Json = dict[str, Any]


class FakeApi:
    """An API server with one object, that can change what it is given."""

    def __init__(self, live: Json | None = None, change: Any = None, refusal: ApiError | None = None) -> None:
        self.live = live
        self.change = change or (lambda document: document)
        self.refusal = refusal
        self.applied: list[Json] = []
        self.owned = 0

    async def get(self, *_: Any, **__: Any) -> Json | None:
        return self.live

    async def create(self, document: Json) -> Json:
        if self.live is not None and not self.refusal:
            raise ApiError(409, "AlreadyExists", "there is one")
        return await self.apply(document)

    async def own_created_fields(self, *_: Any) -> None:
        self.owned += 1

    async def apply(self, document: Json) -> Json:
        if self.refusal:
            raise self.refusal
        self.applied.append(document)
        metadata = {"uid": "1", **document["metadata"], "resourceVersion": str(len(self.applied))}
        self.live = self.change(document | {"metadata": metadata})
        return self.live


async def apply(api: FakeApi, wanted: Json, applier: Applier | None = None) -> tuple[Applier, Any]:
    """Applies a child twice, as two passes do; returns what the second said."""
    applier = applier or Applier(api, lambda _: None)  # type: ignore[arg-type]
    await applier.apply(run_of(), wanted, api.live)
    return applier, await applier.apply(run_of(), wanted, api.live)


async def test_child_is_applied_once() -> None:
    api = FakeApi()
    assert (await apply(api, rollout_service(run_of())))[1] is None
    assert len(api.applied) == 1
    assert "uid" not in api.applied[0]["metadata"]


async def test_changed_wish_is_applied_to_the_very_object() -> None:
    api = FakeApi()
    applier, _ = await apply(api, rollout_service(run_of()))
    changed = rollout_service(run_of())
    changed["spec"]["ports"][0]["port"] = 1
    await apply(api, changed, applier)
    assert [document["metadata"].get("uid") for document in api.applied] == [None, "1"]


async def test_removed_wish_is_applied_though_the_rest_is_there() -> None:
    wanted = rollout_service(run_of())
    more = rollout_service(run_of())
    more["spec"]["sessionAffinity"] = "ClientIP"
    api = FakeApi()
    applier, _ = await apply(api, more)
    await apply(api, wanted, applier)
    assert len(api.applied) == 2


async def test_what_the_api_server_changes_alone_is_not_applied_for_ever() -> None:
    def change(document: Json) -> Json:
        return document | {"spec": document["spec"] | {"clusterIP": "normalised"}}

    api = FakeApi(change=change)
    applier, _ = await apply(api, rollout_service(run_of()))
    assert len(api.applied) == 1
    assert api.live is not None
    by_hand = {"spec": api.live["spec"] | {"clusterIP": "by hand"}, "metadata": api.live["metadata"] | {"resourceVersion": "9"}}
    api.live = api.live | by_hand
    await applier.apply(run_of(), rollout_service(run_of()), api.live)
    assert len(api.applied) == 2


@pytest.mark.parametrize(
    ("owners", "reason"),
    [
        ([], "ChildConflict"),
        ([{"controller": True, "kind": "Deployment", "name": "x", "uid": "9"}], "ChildConflict"),
        ([{"controller": True, "kind": "SpinRun", "name": "other", "uid": "9"}], "ChildConflict"),
        ([{"controller": True, "kind": "SpinRun", "name": "demo", "uid": "of-the-run-before"}], "WaitingForCleanup"),
    ],
)
async def test_object_of_somebody_else_is_not_touched(owners: list[Json], reason: str) -> None:
    wanted = rollout_service(run_of())
    api = FakeApi({"kind": "Service", "metadata": {"name": "demo-rollout", "uid": "7", "ownerReferences": owners}})
    _, refusal = await apply(api, wanted)
    assert (refusal.reason, api.applied) == (reason, [])


async def test_object_in_the_way_that_is_not_watched_is_found_by_the_creation_and_then_only_read() -> None:
    wanted, api = rollout_service(run_of()), CountingApi({"kind": "Service", "metadata": {"name": "demo-rollout", "uid": "7"}})
    applier = Applier(api, lambda _: None)  # type: ignore[arg-type]
    for created, was_refused in ((1, False), (1, True)):
        refusal = await applier.apply(run_of(), wanted, None, was_refused=was_refused)
        assert refusal is not None
        assert (refusal.reason, api.created, api.applied) == ("ChildConflict", created, [])
    api.live = None
    assert await applier.apply(run_of(), wanted, None, was_refused=True) is None
    assert len(api.applied) == 1


async def test_child_that_was_made_unseen_is_taken_for_what_it_is() -> None:
    wanted, api = rollout_service(run_of()), CountingApi()
    await Applier(api, lambda _: None).apply(run_of(), wanted, None)  # type: ignore[arg-type]
    noted: list[Json] = []
    later = Applier(api, noted.append)  # type: ignore[arg-type]
    assert await later.apply(run_of(), wanted, None) is None
    assert (len(api.applied), api.reads) == (1, 1)
    assert [each["metadata"]["uid"] for each in noted] == ["1"], "its pods are known as the run's from now on"
    changed = rollout_service(run_of())
    changed["spec"]["ports"][0]["port"] = 1
    await later.apply(run_of(), changed, None)
    assert [document["metadata"].get("uid") for document in api.applied] == [None, "1"]


async def test_token_that_was_made_unseen_stays() -> None:
    api = CountingApi()
    for token in ("first", "second"):
        await Applier(api, lambda _: None).apply(run_of(), token_secret(run_of(), token), None)  # type: ignore[arg-type]
    assert [document["stringData"] for document in api.applied] == [{"token": "first"}]


async def test_fields_of_a_creation_are_made_those_of_an_apply_once() -> None:
    api = FakeApi()
    applier, _ = await apply(api, rollout_service(run_of()))
    assert api.owned == 0
    for port in (1, 2):
        changed = rollout_service(run_of())
        changed["spec"]["ports"][0]["port"] = port
        await apply(api, changed, applier)
    assert (api.owned, len(api.applied)) == (1, 3)


async def test_object_that_goes_while_it_is_in_the_way_is_tried_again() -> None:
    class Fleeting(FakeApi):
        async def get(self, *_: Any, **__: Any) -> Json | None:
            return None

    with pytest.raises(ApiError, match="gone again") as raised:
        await Applier(Fleeting({"metadata": {}}), lambda _: None).apply(run_of(), rollout_service(run_of()), None)  # type: ignore[arg-type]
    assert raised.value.status == 409


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ApiError(422, "Invalid", "spec.x: bad"), "ChildRefused"),
        (ApiError(400, "BadRequest", "unknown field"), "ChildRefused"),
        (ApiError(500, "InternalError", ".spec.x: field not declared in schema"), "ChildRefused"),
        (ApiError(403, "Forbidden", "exceeded quota: tight"), "QuotaExceeded"),
        (ApiError(403, "Forbidden", "cannot patch services"), "Forbidden"),
    ],
)
async def test_refusal_says_why(error: ApiError, reason: str) -> None:
    _, refusal = await apply(FakeApi(refusal=error), rollout_service(run_of()))
    assert refusal.reason == reason
    assert error.message in refusal.message


@pytest.mark.parametrize("status", [409, 429, 500, 503])
async def test_passing_error_is_raised(status: int) -> None:
    with pytest.raises(ApiError):
        await apply(FakeApi(refusal=ApiError(status, "", "try later")), rollout_service(run_of()))


# --- ConfigMaps, of which the metadata alone is watched ------------------------------------------------------------


class CountingApi(FakeApi):
    """Counts how often the object is read."""

    reads = created = 0

    async def create(self, document: Json) -> Json:
        self.created += 1
        return await super().create(document)

    async def get(self, *_: Any, **__: Any) -> Json | None:
        self.reads += 1
        return self.live


def metadata_of(document: Json | None) -> Json:
    """What a watch of metadata shows."""
    assert document is not None
    return {name: document[name] for name in ("apiVersion", "kind", "metadata")}


async def test_config_map_is_read_once_for_each_of_its_versions() -> None:
    wanted, api = run_config(run_of()), CountingApi()
    first = Applier(api, lambda _: None)  # type: ignore[arg-type]
    await first.apply(run_of(), wanted, None)
    for _ in range(3):
        await first.apply(run_of(), wanted, metadata_of(api.live))
    assert (api.reads, len(api.applied)) == (0, 1), "what was just made is known"
    restarted = Applier(api, lambda _: None)  # type: ignore[arg-type]
    for _ in range(3):
        await restarted.apply(run_of(), wanted, metadata_of(api.live))
    assert (api.reads, len(api.applied)) == (1, 1)


async def test_config_map_that_somebody_changed_is_applied_again() -> None:
    wanted, api = run_config(run_of()), CountingApi()
    applier = Applier(api, lambda _: None)  # type: ignore[arg-type]
    await applier.apply(run_of(), wanted, None)
    assert api.live is not None
    api.live = api.live | {"data": {"run.yaml": "changed"}, "metadata": api.live["metadata"] | {"resourceVersion": "99"}}
    await applier.apply(run_of(), wanted, metadata_of(api.live))
    assert len(api.applied) == 2
    assert api.live["data"] == wanted["data"]


async def test_config_map_that_is_gone_by_now_is_made() -> None:
    wanted, api = run_config(run_of()), CountingApi()
    await Applier(api, lambda _: None).apply(run_of(), wanted, None)  # type: ignore[arg-type]
    seen, api.live = metadata_of(api.live), None
    await Applier(api, lambda _: None).apply(run_of(), wanted, seen)  # type: ignore[arg-type]
    assert len(api.applied) == 2
    assert "uid" not in api.applied[1]["metadata"]
