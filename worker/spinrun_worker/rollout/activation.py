"""Closes the gap between the version that is wanted and the one that vLLM serves, again and again.

Each pass looks at what is there and takes one step. Nothing depends on what an earlier pass, or an earlier life of this agent,
believed it had done.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Activation as ActivationState
from spinrun_protocol.wire import VersionState
from spinrun_worker.ledger.errors import LedgerError
from spinrun_worker.ledger.files import read_record
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.ledger.manifest import content_digest
from spinrun_worker.rollout.gate import Gate, Served
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.rollout.staging import (
    Shapes,
    StagingCancelled,
    StagingError,
    Weights,
    remove_all_but,
    stage,
    staging_path,
    weights_label,
)
from spinrun_worker.vllm.engine import LOADING, Engine, EngineError, EngineStatus

logger = logging.getLogger(__name__)

WANTED_FILE = "wanted.json"
_LONGEST_BACKOFF_SECONDS = 30.0


class Action(Enum):
    """What to do next."""

    WAIT = auto()
    STAGE = auto()
    SWITCH = auto()
    RESUME = auto()
    NOTHING = auto()


def next_action(wanted: str | None, staged: Collection[str], engine: EngineStatus | None) -> Action:
    """The one step that brings vLLM nearer to the wanted weights.

    wanted, staged: labels. engine: None while vLLM does not answer, in which time files may be staged all the same.
    """
    if wanted is None:
        return Action.WAIT
    if wanted not in staged:
        return Action.STAGE
    if engine is None:
        return Action.WAIT
    if engine.label != wanted:
        return Action.SWITCH
    return Action.RESUME if engine.paused else Action.NOTHING


@dataclass(frozen=True)
class Failure:
    """The last failure on the way to the wanted version."""

    reason: str
    count: int
    """Failures in a row."""
    retry_at: float
    """When to try again, by the monotonic clock."""


def backoff_seconds(count: int) -> float:
    """Time to wait after this many failures in a row: 0.5, 1, 2 … 30 s."""
    return min(0.5 * 2.0 ** min(count - 1, 16), _LONGEST_BACKOFF_SECONDS)


class Activation:
    """Holds the wanted version, and the loop that brings vLLM there."""

    def __init__(
        self,
        ledger: Ledger,
        scratch: Path,
        engine: Engine,
        gate: Gate,
        metrics: RolloutMetrics,
        *,
        poll_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """scratch: local folder for two versions and the memory of what was wanted. poll_seconds: time between two looks."""
        self._ledger = ledger
        self._scratch = scratch
        self._engine = engine
        self._gate = gate
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._wanted: Manifest | None = None
        self._remembered: Manifest | None = None
        self._staged: dict[str, Weights] = {}
        # Of the weights that vLLM has been seen to serve: others would kill it.
        self._shapes: Shapes | None = None
        self._staging: asyncio.Task[None] | None = None
        self._staging_cancelled = threading.Event()
        self._status: EngineStatus | None = None
        self._unavailable = "vLLM has not been asked yet"
        self._last_label: str | None = None
        self._failure: Failure | None = None
        self._wake = asyncio.Event()
        self._reported: VersionState | None = None

    def want(self, manifest: Manifest) -> None:
        """Take a version as the wanted one; the one that is wanted already changes nothing.

        Raises ValueError when the manifest is not one of this run's weights.
        """
        _require_weights(manifest, self._ledger.uid)
        if self._wanted is not None and self._wanted.digest == manifest.digest:
            return
        self._wanted = manifest
        self._failure = None
        self._staging_cancelled.set()
        self.wake()

    def wake(self) -> None:
        """Look at vLLM now."""
        self._wake.set()

    def state(self) -> VersionState:
        """What is served, and how far the wanted version is."""
        wanted, served = self._wanted, self._gate.served
        state, reason = self._progress()
        return VersionState(
            serving=served.weights.version if served else None,
            serving_digest=served.weights.digest if served else None,
            staged=wanted.number if wanted and weights_label(wanted) in self._staged else None,
            wanted=wanted.number if wanted else None,
            wanted_digest=wanted.digest if wanted else None,
            state=state,
            reason=reason,
        )

    def _progress(self) -> tuple[ActivationState, str]:
        """How far the wanted version is, and why it is not served."""
        if self._wanted is None:
            return "waiting", "no version has been asked for"
        label, served = weights_label(self._wanted), self._gate.served
        if served is not None and served.weights.label == label:
            return "serving", ""
        staged = label in self._staged
        failed = self._failure.reason if self._failure else ""
        if staged and self._status is None:
            return "waiting", "; before that: ".join(filter(None, (self._unavailable, failed)))
        if failed:
            return "failed", failed
        return (
            ("switching", f"version {self._wanted.number} is being loaded") if staged else ("staging", "files are being copied")
        )

    async def run(self) -> None:
        """Work for ever. What goes wrong is logged, shown in the state, and tried again."""
        recovered = False
        while True:
            seconds = self._poll_seconds
            try:
                if not recovered:
                    await asyncio.to_thread(self._recover)
                    recovered = True
                await self._pass()
            except Exception as error:
                logger.exception("A pass of the activation loop failed; the next one follows")
                seconds = max(seconds, self._fail(f"internal error: {error!r}"))
            self._report()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)
            self._wake.clear()

    def _recover(self) -> None:
        """Remember what was wanted before this agent was restarted, and remove what a life before left behind."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            manifest = read_record(self._scratch / WANTED_FILE, Manifest)
            if manifest is not None:
                _require_weights(manifest, self._ledger.uid)
        except (LedgerError, ValueError) as error:
            logger.warning("What was wanted before the restart is not known, so that the trainer has to say it again: %s", error)
            manifest = None
        if self._wanted is None:
            self._wanted = self._remembered = manifest
        remove_all_but([staging_path(manifest, self._scratch)] if manifest else [], self._scratch)

    async def _pass(self) -> None:
        await self._remember()
        self._status = await self._look()
        self._set_gate()
        if self._wanted is None:
            return
        label = weights_label(self._wanted)
        action = next_action(label, self._staged, self._status)
        if action in (Action.STAGE, Action.SWITCH) and self._failure is not None and self._clock() < self._failure.retry_at:
            return
        if action is Action.STAGE:
            self._start_staging(self._wanted)
        elif action is Action.SWITCH:
            await self._switch(self._staged[label])
        elif action is Action.RESUME:
            await self._resume()

    async def _remember(self) -> None:
        if self._wanted is None or self._wanted is self._remembered:
            return
        wanted = self._wanted
        try:
            await asyncio.to_thread(_write_unsynced, self._scratch / WANTED_FILE, wanted)
        except OSError as error:
            # Staging will fail for the same reason, and say so.
            logger.warning("A restarted agent will not know what is wanted: %s", error)
        self._remembered = wanted

    async def _look(self) -> EngineStatus | None:
        """What vLLM says; None when it does not answer."""
        try:
            status = await self._engine.status()
        except EngineError as error:
            self._unavailable = str(error)
            return None
        weights = self._staged.get(status.label)
        if weights is not None and weights.model_name not in status.models:
            # The label came to a vLLM that had been restarted since its adapter was loaded.
            status = replace(status, label=LOADING)
        self._last_label = status.label
        return status

    def _set_gate(self) -> None:
        """Samples may be taken from weights whose files have been checked, and from no others."""
        status = self._status
        weights = self._staged.get(status.label) if status and not status.paused else None
        if status is None or weights is None:
            self._gate.shut()
            self._metrics.serving_none()
            return
        self._gate.open(Served(weights, status.max_model_len))
        self._metrics.serving(weights.version, weights.digest)
        self._shapes = weights.shapes
        if self._wanted is not None and weights.label == weights_label(self._wanted):
            self._failure = None

    def _start_staging(self, manifest: Manifest) -> None:
        # Staging of a version that is no longer wanted has been cancelled, and wakes this loop when it has ended.
        if self._staging is not None and not self._staging.done():
            return
        self._staging_cancelled = threading.Event()
        # Two versions at most: this one, and the one that goes on serving.
        self._staged = {label: weights for label, weights in self._staged.items() if label == self._last_label}
        self._staging = asyncio.create_task(self._stage(manifest, self._staging_cancelled))

    async def _stage(self, manifest: Manifest, cancelled: threading.Event) -> None:
        started = self._clock()
        kept = [staging_path(manifest, self._scratch), *(weights.path for weights in self._staged.values())]

        def work() -> Weights:
            remove_all_but(kept, self._scratch)
            read = self._metrics.staged_bytes.inc
            return stage(manifest, self._ledger, self._scratch, expected=self._shapes, cancelled=cancelled.is_set, read=read)

        try:
            weights = await asyncio.to_thread(work)
        except StagingCancelled:
            logger.info("Version %d is no longer wanted; staging it has stopped", manifest.number)
        except (StagingError, OSError) as error:
            self._staging_failed(manifest, str(error))
        except Exception as error:
            logger.exception("Staging version %d failed", manifest.number)
            self._staging_failed(manifest, f"internal error: {error!r}")
        else:
            self._staged[weights.label] = weights
            self._metrics.staging_seconds.observe(self._clock() - started)
            logger.info("Version %d is staged after %.1f s", manifest.number, self._clock() - started)
        finally:
            self.wake()

    def _staging_failed(self, manifest: Manifest, reason: str) -> None:
        self._metrics.staging_failures.inc()
        if self._wanted is manifest:
            self._fail(reason)

    async def _switch(self, weights: Weights) -> None:
        """Make vLLM serve other weights. What it serves afterwards, the next look tells."""
        self._report()
        started = self._clock()
        await self._gate.drain()
        self._metrics.serving_none()
        paused = self._clock()
        try:
            await asyncio.to_thread(weights.require_intact)
            await self._load(weights)
        except (EngineError, StagingError) as error:
            self._metrics.switch_failures.inc()
            # Perhaps the files are to blame: they are checked again before the next try.
            self._staged.pop(weights.label, None)
            self._fail(f"switching to version {weights.version} failed: {error}")
        else:
            self._metrics.pause_seconds.observe(self._clock() - paused)
            self._metrics.switch_seconds.observe(self._clock() - started)
            logger.info("vLLM has loaded version %d in %.2f s", weights.version, self._clock() - paused)
        finally:
            self.wake()

    async def _load(self, weights: Weights) -> None:
        try:
            await self._engine.pause()
            load = self._engine.load_adapter if weights.is_adapter else self._engine.load
            await load(weights.path, weights.label)
        except EngineError:
            with suppress(EngineError):
                await self._engine.resume()
            raise
        await self._engine.resume()

    async def _resume(self) -> None:
        """vLLM was left paused, by an agent that died or a call that failed."""
        with suppress(EngineError):
            await self._engine.resume()
            self.wake()

    def _fail(self, reason: str) -> float:
        """Remember a failure; the seconds until the next try."""
        count = self._failure.count + 1 if self._failure else 1
        seconds = backoff_seconds(count)
        self._failure = Failure(reason, count, self._clock() + seconds)
        return seconds

    def _report(self) -> None:
        """Log the state when it has changed."""
        state = self.state()
        if state != self._reported:
            level = logging.WARNING if state.state == "failed" else logging.INFO
            logger.log(level, "%s", _sentence(state), extra={"state": state.to_document()})
            self._reported = state


def _write_unsynced(path: Path, manifest: Manifest) -> None:
    """Put a manifest in a file's place, without waiting for the disk, where the weights are just being written: a machine that
    crashes may forget it, and the trainer says it again."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(manifest.model_dump_json(by_alias=True, exclude_none=True), "utf-8")
    partial.replace(path)


def _sentence(state: VersionState) -> str:
    serving = "nothing" if state.serving is None else f"version {state.serving}"
    wanted = "" if state.wanted is None else f", wanted version {state.wanted}"
    return f"{state.state}: serves {serving}{wanted}{f' ({state.reason})' if state.reason else ''}"


def _require_weights(manifest: Manifest, uid: str) -> None:
    """Raises ValueError unless it is the manifest of a version of this run's weights."""
    if manifest.uid != uid:
        raise ValueError(f"the manifest is of run {manifest.uid}, and this rollout belongs to {uid}")
    if manifest.kind != "weights" or manifest.number != manifest.version:
        raise ValueError(f"the manifest is of {manifest.kind} {manifest.number} with version {manifest.version}, not of weights")
    if manifest.digest != content_digest(manifest.kind, manifest.number, manifest.uid, manifest.files):
        raise ValueError(f"the manifest of version {manifest.number} has a digest that is not that of the files it lists")
