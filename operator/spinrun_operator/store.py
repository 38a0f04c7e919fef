"""The runs that are known, each as the API server last said it."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError

from spinrun_api.documents import InvalidDocumentError, Problem, parse_stored_run, size_problem
from spinrun_api.run import SpinRun
from spinrun_api.status import SpinRunStatus
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
        self._written: dict[Key, Json] = {}
        self._models: dict[Key, tuple[Json, SpinRun]] = {}
        """Runs as models, each with the metadata that it has been made from; its status may be an older one."""

    def get(self, key: Key) -> Json | None:
        """The run; None when there is none of that name."""
        return self._runs.get(key)

    def model(self, key: Key) -> SpinRun:
        """A run that is known, as a model, which is made again only when something else than its status has changed.

        Raises:
            InvalidDocumentError: As from `parse_stored_run`, or the spec is too large.
        """
        body = self._runs[key]
        if (problem := self._problems.get(key)) is not None:
            raise InvalidDocumentError("the run", [problem])
        metadata = {name: value for name, value in body["metadata"].items() if name != "resourceVersion"}
        known = self._models.get(key)
        if known is not None and known[0] == metadata:
            with suppress(ValidationError):
                status = SpinRunStatus.model_validate(body.get("status") or {}, by_alias=True, by_name=False)
                return known[1].model_copy(update={"status": status})
        run = parse_stored_run(body)
        self._models[key] = metadata, run
        return run

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
        known = self._runs.get(key, {})
        if "spec" in known and known["spec"] == body.get("spec"):
            # Mostly it is the status that has changed.
            self._runs[key] = {**body, "metadata": metadata, "spec": known["spec"]}
            return True
        self._problems.pop(key, None)
        self._models.pop(key, None)
        if (problem := size_problem(body.get("spec"))) is not None:
            # Kept without what nobody here will read: there may be many of them.
            self._problems[key] = problem
            body = {name: value for name, value in body.items() if name != "spec"}
            metadata = {name: value for name, value in metadata.items() if name not in ("annotations", "labels")}
        self._runs[key] = {**body, "metadata": metadata}
        return True

    @contextmanager
    def writing(self, key: Key, status: Json) -> Generator[None]:
        """While this status of ours is written, of which the watch may tell before the answer comes."""
        self._written[key] = status
        try:
            yield
        finally:
            self._written.pop(key, None)

    def is_ours(self, body: Json) -> bool:
        """Whether it says nothing new but the status that is being written here."""
        key = key_of(body)
        known, metadata, status = self._runs.get(key), body["metadata"], body.get("status")
        if known is None or status not in (known.get("status"), self._written.get(key)):
            return False
        told = ("uid", "generation", "labels", "annotations", "deletionTimestamp")
        return all(known["metadata"].get(name) == metadata.get(name) for name in told)

    def remove(self, body: Json) -> None:
        """Takes out a run that was deleted, unless another one has its name by now."""
        known = self._runs.get(key_of(body))
        if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
            self._drop(key_of(body))

    def _drop(self, key: Key) -> None:
        for known in (self._runs, self._problems, self._models):
            known.pop(key, None)

    async def refresh(self, key: Key) -> None:
        """Reads a run again from the API server. Raises one of TRANSIENT."""
        body = await self._api.get(SPIN_RUN, *key)
        if body is None:
            self._drop(key)
        else:
            self.put(body)
