"""Names, labels and annotations of a run's children: what finds them again."""

import re
from typing import Any

from spinrun_api.run import API_VERSION, KIND, SpinRun

OPERATOR = "spinrun-operator"
"""How the operator names itself: as user agent, in Events, as manager of fields and of children."""
MANAGED_BY = "spinrun.dev/operator"
"""Value of spec.lifecycle.managedBy that means this operator, as its absence does."""

OUR_PREFIXES = ("spinrun.dev/", "app.kubernetes.io/")
"""Of the labels and annotations that the operator gives to children."""
RUN_LABEL = "spinrun.dev/run"
UID_LABEL = "spinrun.dev/run-uid"
"""Tells a run from one of the same name before it, whose pods may still end."""
ATTEMPT_LABEL = "spinrun.dev/attempt"
COMPONENT_LABEL = "app.kubernetes.io/component"

HASH_ANNOTATION = "spinrun.dev/applied-hash"
"""Hash of what was applied: tells a wish that changed from a live object with defaults filled in."""
REVISION_ANNOTATION = "spinrun.dev/revision"
"""Hash of the part of the spec that a trainer reads at its start."""

TRAINER = "trainer"
ROLLOUT = "rollout"
SCORER = "scorer"
CHECK = "model-check"
"""The init container of a rollout that looks at its model."""

# What the name of a run's child has after the run's own; a StatefulSet's pod and a Job's have theirs after that of their owner.
_SUFFIXES = {
    "PersistentVolumeClaim": "ledger",
    "Secret": "token",
    "ServiceAccount": "spinrun",
    "ConfigMap": "run",
    "Service": "rollout|scorer|trainer",
    "NetworkPolicy": "spinrun|trainer|rollout|scorer",
    "StatefulSet": "rollout|scorer",
    "Job": r"trainer-\d+",
    "Pod": r"(?:rollout|scorer)-\d+|trainer-\d+-\d+(?:-[a-z0-9]+)?",
}
_CHILD_SUFFIX = {kind: re.compile(f"-(?:{suffix})", re.ASCII) for kind, suffix in _SUFFIXES.items()}

Json = dict[str, Any]


def run_name(run: SpinRun) -> str:
    """Name of the run."""
    return run.metadata.name


def namespace(run: SpinRun) -> str:
    """Namespace of the run and of all its children."""
    return run.metadata.namespace or "default"


def rollout_name(run: SpinRun) -> str:
    """The rollouts' StatefulSet and their headless Service."""
    return f"{run.metadata.name}-rollout"


def scorer_name(run: SpinRun) -> str:
    """The scorers' StatefulSet and their headless Service."""
    return f"{run.metadata.name}-scorer"


def trainer_name(run: SpinRun) -> str:
    """The headless Service and the NetworkPolicy by which the nodes of a trainer meet, where it has several."""
    return f"{run.metadata.name}-trainer"


def network_policy_name(run: SpinRun) -> str:
    """The NetworkPolicy of the run's pods."""
    return f"{run.metadata.name}-spinrun"


def former_network_policy_names(run: SpinRun) -> tuple[str, ...]:
    """Of operators up to 0.1.0, which made one for each component, beside the trainer's."""
    return f"{run.metadata.name}-rollout", f"{run.metadata.name}-scorer"


def job_name(run: SpinRun, attempt: int) -> str:
    """The trainer's Job of an attempt."""
    return f"{run.metadata.name}-trainer-{attempt}"


def claim_name(run: SpinRun) -> str:
    """The claim of the ledger's volume: the user's, else ours."""
    return run.spec.storage.claim_name or f"{run.metadata.name}-ledger"


def token_name(run: SpinRun) -> str:
    """The Secret with the run's bearer token."""
    return f"{run.metadata.name}-token"


def run_config_name(run: SpinRun) -> str:
    """The ConfigMap with the resolved run."""
    return f"{run.metadata.name}-run"


def service_account_name(run: SpinRun) -> str:
    """The ServiceAccount of the run's pods."""
    return f"{run.metadata.name}-spinrun"


def labels(run: SpinRun, component: str) -> dict[str, str]:
    """Labels of a child."""
    return {
        "app.kubernetes.io/name": "spinrun",
        "app.kubernetes.io/instance": run.metadata.name,
        COMPONENT_LABEL: component,
        "app.kubernetes.io/managed-by": OPERATOR,
        RUN_LABEL: run.metadata.name,
        UID_LABEL: run.metadata.uid or "",
    }


def selector(run: SpinRun, component: str) -> dict[str, str]:
    """Labels that select the pods of a component, and no other run's."""
    return {RUN_LABEL: run.metadata.name, UID_LABEL: run.metadata.uid or "", COMPONENT_LABEL: component}


def owner_reference(run: SpinRun) -> Json:
    """Makes the run the child's only owner. It does not block the run's deletion: there is nothing to wait for."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": run.metadata.name,
        "uid": run.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def child(run: SpinRun, api_version: str, kind: str, name: str, component: str, **body: Any) -> Json:
    """A child of the run: its type, name, labels and owner, and the rest as given."""
    metadata = {
        "name": name,
        "namespace": namespace(run),
        "labels": labels(run, component),
        "ownerReferences": [owner_reference(run)],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def controller_of(document: Json) -> Json | None:
    """The owner reference that says who controls an object."""
    references = document.get("metadata", {}).get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def is_child_of(run_name: str, kind: str, name: str) -> bool:
    """Whether an object is named as a run's child is, or as a pod of one.

    For objects of which nothing but the name is left, as in an Event; of one that is there `belongs_to` knows more.

    Args:
        run_name: Name of the run, in whose namespace the object is.
        kind: The object's kind: a PodMonitor has the run's own name, which others may have too.
        name: The object's name.
    """
    if kind == "PodMonitor":
        return name == run_name
    suffix = _CHILD_SUFFIX.get(kind)
    return suffix is not None and name.startswith(run_name) and suffix.fullmatch(name, len(run_name)) is not None


def belongs_to(run: SpinRun, document: Json) -> bool:
    """Whether this very run, not one of the same name before it, controls the object."""
    controller = controller_of(document)
    return controller is not None and controller.get("uid") == run.metadata.uid
