"""The claim for the ledger's volume, where the run does not name one of the user's."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names

Json = dict[str, Any]


def ledger_claim(run: SpinRun) -> Json | None:
    """The claim; None when the run names one. A retained claim has no owner, so that it outlives the run."""
    storage = run.spec.storage
    if storage.claim_name is not None:
        return None
    spec: Json = {"accessModes": storage.access_modes, "resources": {"requests": {"storage": storage.size}}}
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    claim = names.child(run, "v1", "PersistentVolumeClaim", names.claim_name(run), "ledger", spec=spec)
    if storage.retain:
        del claim["metadata"]["ownerReferences"]
    return claim


def is_usable(run: SpinRun, claim: Json) -> bool:
    """Whether a claim of that name may hold the run's ledger: its own, or one kept from a run of the same name.

    Runs do not disturb each other on a volume: each has a folder with its own uid.
    """
    if names.belongs_to(run, claim):
        return True
    labels = claim["metadata"].get("labels", {})
    ours = names.labels(run, "ledger") | {names.UID_LABEL: labels.get(names.UID_LABEL)}
    return names.controller_of(claim) is None and all(labels.get(name) == value for name, value in ours.items())
