"""Labels and annotations that a run's children have from the run."""

from dataclasses import replace
from typing import Any

import pytest

from spinrun_kube import names
from spinrun_operator.apply import Applier
from spinrun_operator.observed import child_id
from unit.operator.test_apply import FakeApi
from unit.operator.world import OWN_MODEL, SETTINGS, World, run_of

Json = dict[str, Any]

LABELS = {"team": "a", "kueue.x-k8s.io/queue-name": "gpus", "argocd.argoproj.io/instance": "site", names.RUN_LABEL: "other"}
ANNOTATIONS = {"contact": "me", "kueue.x-k8s.io/x": "y", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
CHOSEN = replace(SETTINGS, inherited_prefixes=("kueue.x-k8s.io/",))


def labelled(world: World, labels: Json = LABELS, annotations: Json = ANNOTATIONS) -> World:
    """The world with a run that has labels and annotations."""
    metadata = world.run.metadata.model_copy(update={"labels": labels, "annotations": annotations})
    world.run = world.run.model_copy(update={"metadata": metadata})
    return world


def children(world: World) -> list[Json]:
    plan = world.step()
    assert {child["kind"] for child in plan.apply} >= {"Job", "StatefulSet", "Service", "Secret", "PersistentVolumeClaim"}
    return plan.apply


@pytest.mark.parametrize("prefix", ["kueue.x-k8s.io", "kueue.x-k8s.io/"])
def test_children_have_the_runs_labels_without_a_prefix_and_with_a_chosen_one(prefix: str) -> None:
    settings = replace(SETTINGS, inherited_prefixes=(prefix,))
    for child in children(labelled(World(run_of(**OWN_MODEL), settings=settings))):
        found = child["metadata"]
        assert {"team": "a", "kueue.x-k8s.io/queue-name": "gpus", names.RUN_LABEL: "demo"}.items() <= found["labels"].items()
        assert {"contact": "me", "kueue.x-k8s.io/x": "y"}.items() <= found["annotations"].items()
        assert not {"argocd.argoproj.io/instance", *ANNOTATIONS} & found["labels"].keys()
        assert "kubectl.kubernetes.io/last-applied-configuration" not in found["annotations"]


def test_other_prefixes_stay_with_the_run() -> None:
    for child in children(labelled(World())):
        assert "team" in child["metadata"]["labels"]
        assert "kueue.x-k8s.io/queue-name" not in child["metadata"]["labels"]


def test_pods_and_selectors_stay_as_they_are() -> None:
    plain, with_labels = children(World()), children(labelled(World(settings=CHOSEN)))
    for before, after in zip(plain, with_labels, strict=True):
        assert before.get("spec") == after.get("spec")


def test_changed_label_is_written_once_though_the_generation_is_the_same() -> None:
    world = labelled(World())
    world.settle()
    old = {child_id(child): child["metadata"]["annotations"][names.HASH_ANNOTATION] for child in world.step().apply}
    labelled(world, {"team": "b"})
    new = {child_id(child): child["metadata"]["annotations"][names.HASH_ANNOTATION] for child in world.step().apply}
    assert old.keys() == new.keys()
    assert not {child for child in old if old[child] == new[child]}


async def test_copy_without_foreign_labels_is_no_reason_to_write_again() -> None:
    api, applier = FakeApi(), Applier(FakeApi(), lambda _: None)  # type: ignore[arg-type]
    applier = Applier(api, lambda _: None)  # type: ignore[arg-type]
    world = labelled(World(settings=CHOSEN))
    (wanted,) = [child for child in world.step().apply if child_id(child) == ("StatefulSet", "demo-rollout")]
    await applier.apply(world.run, wanted, None)
    assert api.live is not None
    metadata = api.live["metadata"]
    kept = {name: {key: text for key, text in metadata[name].items() if "/" in key} for name in ("labels", "annotations")}
    seen = api.live | {"metadata": metadata | kept | {"resourceVersion": "7"}}
    assert await applier.apply(world.run, wanted, seen) is None
    assert len(api.applied) == 1
