"""What a run in a cluster is called, what selects its pods, and where its ledger is: from its document."""

from typing import Any

from spinrun_api.documents import InvalidDocumentError, parse_stored_run
from spinrun_api.run import GROUP, PLURAL, SpinRun
from spinrun_cli.errors import CommandError
from spinrun_kube import names

Json = dict[str, Any]


def resource_name(name: str) -> str:
    """A run as kubectl names it."""
    return f"{PLURAL}.{GROUP}/{name}"


def pod_labels(document: Json) -> str:
    """Selects the pods of this very run, and not of one of the same name before it."""
    metadata = document["metadata"]
    return f"{names.RUN_LABEL}={metadata['name']},{names.UID_LABEL}={metadata['uid']}"


def parsed(document: Json) -> SpinRun:
    """The run.

    Raises:
        CommandError: Another version of SpinRun has written it.
    """
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
        return f"its ledger is deleted with the claim {claim}, because storage.retain is false"
    return f"its ledger stays on claim {claim}, folder {folder}; to delete it: kubectl delete pvc {claim} -n {namespace}"
