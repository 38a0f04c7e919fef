"""The runs that are known, each as the API server last said it."""

from collections.abc import Iterator
from typing import Any

from spinrun_api.documents import Problem, size_problem
from spinrun_kube.api import Api
from spinrun_kube.kinds import SPIN_RUN
from spinrun_operator.follow import version_of
from spinrun_operator.queue import Key

Json = dict[str, Any]


def key_of(body: Json) -> Key:
    """Namespace and name of a run."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


class RunStore:
    """A copy of the SpinRuns. News comes by watches, by lists and by our own writes, in any order: the newest version stays."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._runs: dict[Key, Json] = {}
        self._problems: dict[Key, Problem] = {}

    def get(self, key: Key) -> Json | None:
        """The run; None when there is none of that name."""
        return self._runs.get(key)

    def problem(self, key: Key) -> Problem | None:
        """What makes the run's spec too large, in which case it is not kept."""
        return self._problems.get(key) if key in self._runs else None

    def keys(self) -> list[Key]:
        """All runs."""
        return list(self._runs)

    def phases(self) -> Iterator[tuple[str, str, str]]:
        """Namespace, name and phase of all runs."""
        return ((*key, str(body.get("status", {}).get("phase", "Unknown"))) for key, body in self._runs.items())

    def bodies(self, namespace: str | None) -> list[Json]:
        """All runs of a namespace, or of all."""
        return [body for key, body in self._runs.items() if namespace in (None, key[0])]

    def is_news(self, body: Json) -> bool:
        """Whether it is newer than what is known."""
        known = self._runs.get(key_of(body))
        return known is None or version_of(known) < version_of(body)

    def put(self, body: Json) -> bool:
        """Takes a run in, unless it is older than what is known. Whether it was news."""
        if not self.is_news(body):
            return False
        key = key_of(body)
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        self._problems.pop(key, None)
        if (problem := size_problem(body.get("spec"))) is not None:
            # Kept without what nobody here will read: there may be many of them.
            self._problems[key] = problem
            body = {name: value for name, value in body.items() if name != "spec"}
            metadata = {name: value for name, value in metadata.items() if name not in ("annotations", "labels")}
        self._runs[key] = {**body, "metadata": metadata}
        return True

    def remove(self, body: Json) -> None:
        """Takes out a run that was deleted, unless another one has its name by now."""
        known = self._runs.get(key_of(body))
        if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
            del self._runs[key_of(body)]

    async def refresh(self, key: Key) -> None:
        """Reads a run again from the API server. Raises one of TRANSIENT."""
        body = await self._api.get(SPIN_RUN, *key)
        if body is None:
            self._runs.pop(key, None)
        else:
            self.put(body)
