"""A run of the cluster to be explained: its status, and the figures on its ledger."""

from collections.abc import Iterator
from dataclasses import replace

from spinrun_api.status import SpinRunStatus
from spinrun_cli.cluster.client import Access, run
from spinrun_cli.cluster.remote import load_report
from spinrun_cli.cluster.status import snapshot_of, status_of
from spinrun_cli.errors import CommandError
from spinrun_cli.show.explanation import Explained
from spinrun_cli.show.run_data import RunData
from spinrun_kube.kinds import SPIN_RUN

OBSTACLES = ("Degraded", "LedgerUnavailable", "Suspended")
"""Conditions that say what stands in a run's way."""


def load_explained(name: str, access: Access, *, image: str | None) -> Explained:
    """A run of the cluster.

    Args:
        name: Its name.
        access: To the cluster.
        image: Of the pod that reads the ledger; None: the operator's.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    document = run(access, lambda cluster: cluster.request("GET", SPIN_RUN, cluster.namespace, name))
    status = status_of(document)
    snapshot = replace(snapshot_of(name, status), trouble="")  # it is among the obstacles
    obstacles = list(_obstacles(name, status))
    data, notes = RunData(name), []
    # Before the first window has ended there is nothing to read, and perhaps no volume.
    if status.window or snapshot.outcome is not None:
        try:
            data = load_report(name, access, image=image)
        except CommandError as error:
            notes.append(f"Its figures could not be read: {error}")
    return Explained(snapshot, data, obstacles, notes)


def _obstacles(name: str, status: SpinRunStatus) -> Iterator[str]:
    for each in status.conditions:
        if each.type in OBSTACLES and each.status == "True":
            remedy = f"; `spinrun resume {name}` continues it" if each.type == "Suspended" else ""
            yield f"{each.reason}: {each.message}{remedy}"
        if each.type == "Progressing" and each.reason in ("Restarting", "ProgressDeadlineExceeded"):
            yield f"{each.reason}: {each.message}"
