"""Closes the gap between the version that is wanted and the one that vLLM serves, again and again.

Each pass observes the current state and takes one action. Nothing depends on what an earlier pass, or this agent before a
restart, believed it had done.
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
from spinrun_protocol.wire import Activation, VersionState
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
# Time after a switch for which the version before it is kept.
_KEEP_SECONDS = 2.0


class NextAction(Enum):
    """What one pass of the activation loop does."""

    WAIT = auto()
    STAGE = auto()
    SWITCH = auto()
    RESUME = auto()
    NOTHING = auto()


def next_action(wanted: str | None, staged: Collection[str], engine: EngineStatus | None) -> NextAction:
    """The action that brings vLLM closer to the wanted weights.

    Args:
        wanted: Label of the wanted weights; None before any have been requested.
        staged: Labels of the weights in scratch space.
        engine: What vLLM reports; None while it does not answer, which does not stop files from being staged.
    """
    if wanted is None:
        return NextAction.WAIT
    if wanted not in staged:
        return NextAction.STAGE
    if engine is None:
        return NextAction.WAIT
    if engine.label != wanted:
        return NextAction.SWITCH
    return NextAction.RESUME if engine.paused else NextAction.NOTHING


@dataclass(frozen=True)
class ActivationFailure:
    """The last failure on the way to the wanted version."""

    reason: str
    count: int
    """Failures in a row."""
    retry_at: float
    """When to retry, by the monotonic clock."""


def backoff_seconds(count: int) -> float:
    """How long to wait after this many failures in a row: 0.5, 1, 2 … 30 s."""
    return min(0.5 * 2.0 ** min(count - 1, 16), _LONGEST_BACKOFF_SECONDS)


class Activator:
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
        """Do nothing yet; see `run`.

        Args:
            ledger: The run's ledger.
            scratch: Local folder for two versions, and for the record of which one is wanted.
            engine: The vLLM to bring there.
            gate: What samples pass through.
            metrics: The agent's metrics.
            poll_seconds: Interval between checks of vLLM.
            clock: Seconds, as time.monotonic.
        """
        self._ledger = ledger
        self._scratch = scratch
        self._engine = engine
        self._gate = gate
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._wanted: Manifest | None = None
        self._persisted: Manifest | None = None
        self._staged: dict[str, Weights] = {}
        # Those of the weights that vLLM has served so far: any others would kill it.
        self._shapes: Shapes | None = None
        self._staging: asyncio.Task[None] | None = None
        self._staging_cancelled = threading.Event()
        self._status: EngineStatus | None = None
        self._unavailable = "vLLM has not been asked yet"
        self._last_label: str | None = None
        self._switched = 0.0
        self._failure: ActivationFailure | None = None
        self._wake = asyncio.Event()
        self._reported: VersionState | None = None

    def want(self, manifest: Manifest) -> None:
        """Make a version the wanted one. Idempotent.

        Raises:
            ValueError: The manifest is not one of this run's weights.
        """
        _require_weights(manifest, self._ledger.uid)
        if self._wanted is not None and self._wanted.digest == manifest.digest:
            return
        self._wanted = manifest
        self._failure = None
        self._staging_cancelled.set()
        self.wake()

    def wake(self) -> None:
        """Check vLLM now."""
        self._wake.set()

    def state(self) -> VersionState:
        """Which version is served, and how far the wanted one has come."""
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

    def _progress(self) -> tuple[Activation, str]:
        """How far the wanted version has come, and why it is not served."""
        if self._wanted is None:
            return "waiting", "no version has been requested"
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
        """Run forever. What goes wrong is logged, shown in the state, and retried."""
        recovered = False
        while True:
            seconds = self._poll_seconds
            try:
                if not recovered:
                    await asyncio.to_thread(self._recover)
                    recovered = True
                await self._pass()
            except Exception as error:
                logger.exception("A pass of the activation loop failed; retrying")
                seconds = max(seconds, self._fail(f"internal error: {error!r}"))
            self._report()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)
            self._wake.clear()

    def _recover(self) -> None:
        """Load which version was wanted before this agent was restarted, and remove what it left behind then."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            manifest = read_record(self._scratch / WANTED_FILE, Manifest)
            if manifest is not None:
                _require_weights(manifest, self._ledger.uid)
        except (LedgerError, ValueError) as error:
            logger.warning("The version wanted before the restart is unknown; waiting for the trainer to request one: %s", error)
            manifest = None
        if self._wanted is None:
            self._wanted = self._persisted = manifest
        remove_all_but([staging_path(manifest, self._scratch)] if manifest else [], self._scratch)

    async def _pass(self) -> None:
        if self._wanted is not None and self._wanted is not self._persisted:
            wanted = self._wanted
            try:
                await asyncio.to_thread(_write_unsynced, self._scratch / WANTED_FILE, wanted)
            except OSError as error:
                # Staging will fail for the same reason, and say so.
                logger.warning("After a restart this agent will not know which version is wanted: %s", error)
            self._persisted = wanted
        self._status = await self._check_engine()
        self._set_gate()
        if self._wanted is None:
            return
        label = weights_label(self._wanted)
        action = next_action(label, self._staged, self._status)
        if (
            action in (NextAction.STAGE, NextAction.SWITCH)
            and self._failure is not None
            and self._clock() < self._failure.retry_at
        ):
            return
        if action is NextAction.STAGE:
            self._start_staging(self._wanted)
        elif action is NextAction.SWITCH:
            await self._switch(self._staged[label])
        elif action is NextAction.RESUME:
            # vLLM was left paused, by an agent that died or a call that failed.
            with suppress(EngineError):
                await self._engine.resume()
                self.wake()
        elif action is NextAction.NOTHING and len(self._staged) > 1 and self._clock() - self._switched > _KEEP_SECONDS:
            # Not at the next boundary, when the trainer waits for this agent.
            self._staged = {label: self._staged[label]}
            with suppress(OSError):  # staging will fail for the same reason, and say so
                await asyncio.to_thread(remove_all_but, [self._staged[label].path], self._scratch)

    async def _check_engine(self) -> EngineStatus | None:
        """What vLLM reports; None when it does not answer."""
        try:
            status = await self._engine.status()
        except EngineError as error:
            self._unavailable = str(error)
            return None
        weights = self._staged.get(status.label)
        if weights is not None and weights.model_name not in status.models:
            # The label was given to a vLLM that had been restarted since its adapter was loaded.
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
        # Staging of a version that is no longer wanted has been cancelled, and wakes this loop once it has ended.
        if self._staging is not None and not self._staging.done():
            return
        self._staging_cancelled = threading.Event()
        # Two versions at most: this one, and the one being served meanwhile.
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
            logger.info("Version %d is no longer wanted; stopped staging it", manifest.number)
        except Exception as error:
            self._metrics.staging_failures.inc()
            is_foreseen = isinstance(error, (StagingError, OSError))
            if not is_foreseen:
                logger.exception("Staging version %d failed", manifest.number)
            if self._wanted is manifest:
                self._fail(str(error) if is_foreseen else f"internal error: {error!r}")
        else:
            self._staged[weights.label] = weights
            self._metrics.staging_seconds.observe(self._clock() - started)
            logger.info("Version %d is staged after %.1f s", manifest.number, self._clock() - started)
        finally:
            self.wake()

    async def _switch(self, weights: Weights) -> None:
        """Make vLLM serve other weights. The next check will tell what it serves afterwards."""
        self._report()
        started = self._clock()
        await self._gate.drain()
        self._metrics.serving_none()
        paused = self._clock()
        try:
            await asyncio.to_thread(weights.require_intact)
            await _load(self._engine, weights)
        except (EngineError, StagingError) as error:
            self._metrics.switch_failures.inc()
            # The files may be to blame: they are checked again before the next try.
            self._staged.pop(weights.label, None)
            self._fail(f"switching to version {weights.version} failed: {error}")
        else:
            self._switched = self._clock()
            self._metrics.pause_seconds.observe(self._clock() - paused)
            self._metrics.switch_seconds.observe(self._clock() - started)
            logger.info("vLLM has loaded version %d in %.2f s", weights.version, self._clock() - paused)
        finally:
            self.wake()

    def _fail(self, reason: str) -> float:
        """Record a failure; returns the seconds until the next try."""
        count = self._failure.count + 1 if self._failure else 1
        seconds = backoff_seconds(count)
        self._failure = ActivationFailure(reason, count, self._clock() + seconds)
        return seconds

    def _report(self) -> None:
        """Log the state if it has changed."""
        state = self.state()
        if state != self._reported:
            level = logging.WARNING if state.state == "failed" else logging.INFO
            logger.log(level, "%s", _sentence(state), extra={"state": state.to_document()})
            self._reported = state


async def _load(engine: Engine, weights: Weights) -> None:
    """Have vLLM load weights, and resume whatever happens. Raises EngineError."""
    try:
        await engine.pause()
        load = engine.load_adapter if weights.is_adapter else engine.load
        await load(weights.path, weights.label)
    except EngineError:
        with suppress(EngineError):
            await engine.resume()
        raise
    await engine.resume()


def _write_unsynced(path: Path, manifest: Manifest) -> None:
    """Put a manifest in a file's place, without waiting for the disk, which is busy writing weights.

    After a crash of the machine it may be lost, and the trainer then requests the version again.
    """
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
        raise ValueError(f"the manifest belongs to run {manifest.uid}, this rollout to {uid}")
    if manifest.kind != "weights" or manifest.number != manifest.version:
        raise ValueError(f"the manifest is of {manifest.kind} {manifest.number} with version {manifest.version}, not of weights")
    if manifest.digest != content_digest(manifest.kind, manifest.number, manifest.uid, manifest.files):
        raise ValueError(f"the manifest of version {manifest.number} has a digest that is not that of the files it lists")
