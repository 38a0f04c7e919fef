"""The ServiceAccount of the run's pods."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names

Json = dict[str, Any]


def service_account(run: SpinRun) -> Json:
    """An account without any right, whose token no pod gets: nothing in a run talks to the Kubernetes API."""
    return names.child(
        run,
        "v1",
        "ServiceAccount",
        names.service_account_name(run),
        "account",
        automountServiceAccountToken=False,
    )
