"""Polling trainers for how far they are: a task a run, with timeouts, so that a silent trainer holds up nothing."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import ValidationError

from spinrun_kube import times
from spinrun_kube.answers import InvalidAnswerError, read_at_most
from spinrun_operator.observed import TrainerProgress
from spinrun_operator.queue import Key
from spinrun_operator.settings import Settings
from spinrun_operator.stall import StallClock, seen_of_progress
from spinrun_protocol.commands import TRAINER_PORT
from spinrun_protocol.wire import Progress

TIMEOUT_SECONDS = 5.0
SIZE_LIMIT = 1 << 20
"""Bytes of an answer: more is not progress."""
TEXT_LIMIT = 4000
"""Characters of a text that are kept."""

# What changes all the time, and is not worth a status write of its own.
_FLEETING = {"prompts_done", "prompts_total", "beats", "message", "eta_seconds"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Whom to ask, and who must answer."""

    host: str
    """Address of the pod of rank 0."""
    uid: str
    attempt: int

    @property
    def url(self) -> str:
        """Where the progress is read."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{TRAINER_PORT}/progress"


class ProgressPoller:
    """Follows trainers. What is worth a status write is published, and its run woken."""

    def __init__(
        self,
        settings: Settings,
        wake: Callable[[Key], None],
        stalls: StallClock,
        *,
        clock: Callable[[], datetime] = times.utc_now,
    ) -> None:
        self._settings = settings
        self._wake = wake
        self._stalls = stalls
        self._clock = clock
        self._followed: dict[Key, tuple[Target, asyncio.Task[None]]] = {}
        self._published: dict[Key, TrainerProgress] = {}
        self._session: aiohttp.ClientSession | None = None

    def published(self, key: Key) -> TrainerProgress | None:
        """The newest progress that is worth a status write."""
        return self._published.get(key)

    def follow(self, key: Key, target: Target | None) -> None:
        """Polls the target from now on; nobody with None."""
        followed = self._followed.get(key)
        if followed is not None:
            if followed[0] == target:
                return
            followed[1].cancel()
            del self._followed[key]
        if target is not None:
            self._followed[key] = (target, asyncio.create_task(self._poll(key, target)))

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self.follow(key, None)
        self._published.pop(key, None)

    async def close(self) -> None:
        """Stops polling."""
        for key in list(self._followed):
            self.forget(key)
        if self._session is not None:
            await self._session.close()

    async def _poll(self, key: Key, target: Target) -> None:
        published_at = float("-inf")
        while True:
            try:
                progress = await self._fetch(target)
                self._stalls.note(key, "progress", seen_of_progress(progress))
                last = self._published.get(key)
                waited = time.monotonic() - published_at
                if is_news(last.progress if last else None, progress, may_wait=waited < self._settings.progress_write_seconds):
                    self._published[key] = TrainerProgress(progress, self._clock())
                    published_at = time.monotonic()
                    self._wake(key)
            except (InvalidAnswerError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                logger.debug("no progress from %s: %s", target.url, error, extra={"namespace": key[0], "run": key[1]})
            except Exception:
                logger.exception("progress from %s", target.url, extra={"namespace": key[0], "run": key[1]})
            await asyncio.sleep(self._settings.progress_seconds)

    async def _fetch(self, target: Target) -> Progress:
        """What the trainer says now.

        Raises:
            ValueError: Another run or attempt answers, or what answers is not a trainer.
            InvalidAnswerError: The answer is too long.
            TimeoutError: It did not come to its end in time.
            aiohttp.ClientError: Nobody answers.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                trust_env=False,
                # What is small when compressed may be large when it is not.
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
            )
        async with self._session.get(target.url, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                raise ValueError(f"status {response.status}")
            content = await read_at_most(response.content, SIZE_LIMIT)
        try:
            progress = Progress.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(f"not a progress: {error.error_count()} errors") from error
        if (progress.uid, progress.attempt) != (target.uid, target.attempt):
            raise ValueError(f"attempt {progress.attempt} of run {progress.uid} answers")
        if not _has_sound_numbers(progress.model_dump()):
            raise ValueError("a figure that no status can hold")
        texts = {"message": progress.message[:TEXT_LIMIT], "trouble": progress.trouble[:TEXT_LIMIT]}
        return progress.model_copy(update=texts)


def _has_sound_numbers(value: Any) -> bool:
    """Whether all numbers are finite, and the integers of 64 bits: others the API server refuses, with the whole status."""
    if isinstance(value, dict):
        return all(map(_has_sound_numbers, value.values()))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 2**63


def is_news(last: Progress | None, new: Progress, *, may_wait: bool) -> bool:
    """Whether progress is worth a status write.

    Args:
        last: The progress that was written last.
        new: The progress of now.
        may_wait: Whether a change of nothing but steps and figures can wait: one was written lately.
    """
    if last is None or _milestones(last) != _milestones(new):
        return True
    return not may_wait and last.model_dump(exclude=_FLEETING) != new.model_dump(exclude=_FLEETING)


def _milestones(progress: Progress) -> tuple[Any, ...]:
    """What people wait for."""
    is_finished, is_troubled = progress.activity == "finished", bool(progress.trouble)
    return progress.attempt, progress.window, progress.windows, progress.version, progress.best, is_finished, is_troubled
