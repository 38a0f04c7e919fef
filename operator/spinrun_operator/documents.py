"""The documents of a run's children, each made once for a generation of the run, with the hash of what it says."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Concatenate, ParamSpec

from spinrun_api.run import SpinRun
from spinrun_operator.children.inherited import with_inherited
from spinrun_operator.children.trainer_job import trainer_revision
from spinrun_operator.drift import with_hash
from spinrun_operator.settings import Settings

Json = dict[str, Any]
Arguments = ParamSpec("Arguments")


class ChildDocuments:
    """Makes children, and remembers of each kind the last one. They depend on the run's spec and metadata, not on its status."""

    def __init__(self, run: SpinRun, settings: Settings) -> None:
        self._run = run
        self._settings = settings
        self._made: dict[Callable[..., Json], tuple[Any, Json]] = {}

    def are_of(self, run: SpinRun) -> bool:
        """Whether they are those of the run as it is now."""
        ours, its = self._run.metadata, run.metadata
        return (ours.uid, ours.generation, ours.labels, ours.annotations) == (
            its.uid,
            its.generation,
            its.labels,
            its.annotations,
        )

    def make(
        self, kind: Callable[Concatenate[SpinRun, Arguments], Json], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Json:
        """A child with the hash of what it says.

        Args:
            kind: The function of `children/` that makes it.
            *arguments: What it needs beside the run.
            **named: The same.
        """
        asked = (arguments, named)
        known = self._made.get(kind)
        if known is None or known[0] != asked:
            known = self._made[kind] = (asked, self.finish(kind(self._run, *arguments, **named)))
        return known[1]

    def finish(self, child: Json) -> Json:
        """A child that was made elsewhere, with what it has from the run, and its hash."""
        return with_hash(with_inherited(child, self._run, self._settings))

    @cached_property
    def revision(self) -> str:
        """See `trainer_revision`."""
        return trainer_revision(self._run)
