"""The Secret with the run's bearer token, which all agents ask of the trainer."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names

Json = dict[str, Any]


def token_secret(run: SpinRun, token: str) -> Json:
    """The Secret. It cannot be changed: agents and trainer read it once."""
    return names.child(
        run, "v1", "Secret", names.token_name(run), "token", type="Opaque", immutable=True, stringData={"token": token}
    )
