"""Keeps samples and switches apart: no sample is made while the version changes, and none comes from two versions."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from spinrun_worker.rollout.staging import Weights


class VersionChangedError(Exception):
    """The requested version is not served, or no longer."""


@dataclass(frozen=True)
class Served:
    """What vLLM serves."""

    weights: Weights
    max_model_len: int
    """Longest prompt and completion together, in tokens."""


class Gate:
    """Requests to vLLM enter under the version being served; a switch waits until the last one has left."""

    def __init__(self) -> None:
        self._served: Served | None = None
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def served(self) -> Served | None:
        """What vLLM serves; None while it serves nothing known or is switching."""
        return self._served

    def open(self, served: Served) -> None:
        """Let requests for these weights pass."""
        self._served = served

    def shut(self) -> None:
        """Let no further request pass. Those inside continue."""
        self._served = None

    async def drain(self) -> None:
        """Shut, and wait until the last request has left."""
        self.shut()
        await self._empty.wait()

    def admits(self, version: int, digest: str) -> Served:
        """What is served, if it is this version.

        Raises:
            VersionChangedError: Another version is served, or none.
        """
        served = self._served
        if served is None:
            raise VersionChangedError(f"version {version} is not served here: no version is at the moment")
        weights = served.weights
        if (weights.version, weights.digest) != (version, digest):
            raise VersionChangedError(
                f"version {version} with digest {digest} is not served here: version {weights.version} with digest "
                f"{weights.digest} is"
            )
        return served

    @contextmanager
    def passing(self, version: int, digest: str) -> Generator[Served]:
        """One request on its way through vLLM: the weights stay as they are until it has left.

        Raises:
            VersionChangedError: That version is not served.
        """
        served = self.admits(version, digest)
        self._inside += 1
        self._empty.clear()
        try:
            yield served
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()
