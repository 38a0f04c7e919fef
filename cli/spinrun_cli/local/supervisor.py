"""Keeps the processes of a local run alive until the trainer has ended, and then none of them.

    probe      once: which dtype vLLM shall compute in
    vLLM       restarted when it dies             agent      likewise
    scorer     likewise, where the run serves the model that prefers
    trainer    one attempt after the other, as its exit code says

All start together: vLLM takes longest, and the trainer loads and publishes the first version meanwhile.

    processes  what each is started with          keeper     starts servers again
    stop       what signals ask for               child      one process, under a guard
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

import httpx
from pydantic import ValidationError

from spinrun_api.run import SpinRun
from spinrun_cli.local import machine as machines
from spinrun_cli.local.child import Child, free_port
from spinrun_cli.local.disk import disk_message, full_disk_hint
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.keeper import GaveUpError, Keeper, with_log
from spinrun_cli.local.machine import Machine
from spinrun_cli.local.policy import backoff_seconds
from spinrun_cli.local.processes import LOOPBACK, LocalRollout, LocalScorer, ProcessBuilder
from spinrun_cli.local.reporter import Reporter
from spinrun_cli.local.stop import StopRequests
from spinrun_cli.show.snapshot import Snapshot, WindowFigures
from spinrun_protocol.environment import PREFERENCE_KEY, TOKEN_FILE
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.policy import Action, decide
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Progress
from spinrun_worker.ledger import LedgerError, read_metrics

T = TypeVar("T")

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class LocalResult:
    """How `spinrun local` ends."""

    exit_code: int
    """Exit code of the command."""
    message: str
    """What happened and what to do."""
    termination: TerminationMessage | None = None
    """What the trainer said as it ended."""


class Supervisor:
    """One run from its first process to its last."""

    def __init__(
        self,
        run: SpinRun,
        folder: RunFolder,
        reporter: Reporter,
        *,
        machine: Machine | None = None,
        backoff: Callable[[int], float] = backoff_seconds,
        checkpoint_seconds: float = 60.0,
        stop_seconds: float = 15.0,
    ) -> None:
        """Prepares everything and starts nothing.

        Args:
            run: The run, with its uid.
            folder: Where it is.
            reporter: Tells the person what happens.
            machine: None: found out by the probe.
            backoff: Seconds to wait after a number of failures in a row.
            checkpoint_seconds: Time for the trainer to end in good order.
            stop_seconds: The same for the others.
        """
        self._run = run
        self._folder = folder
        self._reporter = reporter
        self._machine = machine
        self._backoff = backoff
        self._checkpoint_seconds = checkpoint_seconds
        self._stop_seconds = stop_seconds
        self._snapshot = Snapshot(run.metadata.name, news=[f"logs in {folder.logs}"])
        self._ports: set[int] = set()
        self._probe = Child("probe", folder.logs / "probe.log")
        self._rollouts = [LocalRollout(index, folder, self._ports) for index in range(run.spec.rollout.replicas)]
        num_scorers = run.spec.scorers.replicas if run.spec.scorers is not None else 0
        self._scorers = [LocalScorer(index, folder, self._ports) for index in range(num_scorers)]
        self._trainer = Child("trainer", folder.logs / "trainer.log")
        self._trainer_port = 0
        self._environment = {name: value for name, value in os.environ.items() if name != PREFERENCE_KEY}
        self._environment |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", TOKEN_FILE: str(folder.token_file)}
        self._client = httpx.AsyncClient(timeout=5.0, trust_env=False)
        self._keeper = Keeper(self._environment, self, backoff, self._client)
        self._requests = StopRequests(self._announce_stop)

    async def run(self) -> LocalResult:
        """Run until the trainer is done, gives up, or a signal asks to stop. No child is left when this returns."""
        watch = asyncio.create_task(self._watch())
        try:
            with self._requests.handled():
                result = await first_of(self._work(), stopped(self._requests))
                await self._end_all()
                return result
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._client.aclose()

    async def _work(self) -> LocalResult:
        try:
            machine = self._machine
            if machine is None:
                self.set_state(self._probe, "starting")
                machine = await measure_machine(self._probe, self._environment)
                self._snapshot = replace(self._snapshot, children={})
            processes = ProcessBuilder(self._run, self._folder, machine, os.environ)
            return await first_of(
                self._train(processes),
                *(self._keep_vllm(rollout, processes) for rollout in self._rollouts),
                *(self._keep_agent(rollout, processes) for rollout in self._rollouts),
                *(self._keep_scorer(scorer, processes) for scorer in self._scorers),
            )
        except GaveUpError as error:
            return LocalResult(error.exit_code, str(error))
        except OSError as error:
            # Logs and the attempt's number are written here; what the processes write, they speak of themselves.
            if (message := disk_message(error, self._folder.root)) is None:
                raise
            return LocalResult(ExitCode.FAILED, message)

    # --- rollouts and scorers --------------------------------------------------------------------------------------

    async def _keep_vllm(self, rollout: LocalRollout, processes: ProcessBuilder) -> NoReturn:
        def move() -> None:
            rollout.vllm_port = free_port(self._ports)
            self._keeper.restart(rollout.agent)

        await self._keeper.keep(
            rollout.vllm,
            lambda: processes.vllm(rollout),
            lambda: f"http://{LOOPBACK}:{rollout.vllm_port}/health",
            move,
        )

    async def _keep_agent(self, rollout: LocalRollout, processes: ProcessBuilder) -> NoReturn:
        def move() -> None:
            rollout.agent_port = free_port(self._ports)
            self._keeper.restart(self._trainer)

        await self._keeper.keep(rollout.agent, lambda: processes.agent(rollout), lambda: f"{rollout.url}/healthz", move)

    async def _keep_scorer(self, scorer: LocalScorer, processes: ProcessBuilder) -> NoReturn:
        def move() -> None:
            scorer.port = free_port(self._ports)
            self._keeper.restart(self._trainer)

        await self._keeper.keep(scorer.vllm, lambda: processes.scorer(scorer), lambda: f"{scorer.url}/health", move)

    def set_state(self, child: Child, state: str) -> None:
        """Notes what a child does, to be shown."""
        self._snapshot = replace(self._snapshot, children={**self._snapshot.children, child.name: state})

    def warn(self, message: str) -> None:
        """Tells the person what went wrong."""
        self._reporter.warn(message)

    # --- the trainer -----------------------------------------------------------------------------------------------

    async def _train(self, processes: ProcessBuilder) -> LocalResult:
        """One attempt after the other, until one completes or no other is to follow."""
        lifecycle = self._run.spec.lifecycle
        failures = 0
        while True:
            code, termination = await self._attempt(processes)
            action = decide(code, lifecycle.failure_policy, disrupted=self._keeper.has_moved(self._trainer)).action
            what = termination.message if termination else f"exit code {code} without a message"
            if action is Action.COMPLETE:
                return LocalResult(ExitCode.COMPLETE, what, termination)
            if action is Action.AWAIT_LEDGER:
                message = f"the ledger cannot be written: {what}; then continue with --resume"
                return LocalResult(ExitCode.FAILED, message, termination)
            if action is Action.FAIL:
                # The command's own exit code for a trainer that is not to be tried again.
                exit_code = code if code == ExitCode.INVALID_CONFIGURATION else ExitCode.FAILED
                return LocalResult(exit_code, f"the trainer ended: {what} (log: {self._trainer.log})", termination)
            if hint := full_disk_hint(self._folder.root):
                return LocalResult(ExitCode.FAILED, f"the trainer ended: {what}. {hint}", termination)
            failures += action is Action.RESTART
            if failures > lifecycle.backoff_limit:
                limit = f"after {failures} failed attempts (lifecycle.backoffLimit {lifecycle.backoff_limit})"
                message = with_log(f"the trainer failed {limit}: {what}", self._trainer)
                return LocalResult(ExitCode.FAILED, message, termination)
            seconds = self._backoff(max(failures, 1))
            self.set_state(self._trainer, "restarting")
            attempt = self._snapshot.attempt
            self.warn(f"attempt {attempt} of the trainer ended: {what}; starting attempt {attempt + 1} in {seconds:g} s")
            await asyncio.sleep(seconds)

    async def _attempt(self, processes: ProcessBuilder) -> tuple[int, TerminationMessage | None]:
        """One life of the trainer: its exit code, and what it said as it ended."""
        self._folder.clear_termination()
        attempt = self._folder.next_attempt()
        self._snapshot = replace(self._snapshot, attempt=attempt)
        self._trainer_port = free_port(self._ports)
        self.set_state(self._trainer, "starting")
        await self._keeper.start(
            self._trainer, lambda: processes.trainer(attempt, self._trainer_port, self._rollouts, self._scorers)
        )
        code = await self._trainer.wait()
        return code, self._folder.termination()

    # --- watching and ending ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Shows the run, again and again."""
        while True:
            if self._trainer.running:
                await self._update_progress()
            self._reporter.show(self._snapshot)
            await asyncio.sleep(POLL_SECONDS)

    async def _update_progress(self) -> None:
        """Asks rank 0 how far it is."""
        try:
            response = await self._client.get(f"http://{LOOPBACK}:{self._trainer_port}/progress")
            progress = Progress.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError):
            return  # not up yet, or about to end
        if progress.uid != self._run.metadata.uid:
            return
        self.set_state(self._trainer, "ready")
        if progress != self._snapshot.progress:
            self._folder.save_progress(progress)
        windows = self._snapshot.windows
        if not windows and progress.metrics.accuracy is not None:
            accuracy = accuracy_of_version_0(self._folder)
            windows = [] if accuracy is None else [WindowFigures(0, accuracy)]
        self._snapshot = replace(self._snapshot, progress=progress, windows=windows, news=())

    def _announce_stop(self) -> None:
        if self._trainer.running:
            self._reporter.say("stopping: the trainer saves a checkpoint; Ctrl-C again stops at once")

    async def _end_all(self) -> None:
        """End every child: the trainer first, while it can still save, then the others."""
        rollouts = (child for rollout in self._rollouts for child in (rollout.agent, rollout.vllm))
        others = [self._probe, *rollouts, *(scorer.vllm for scorer in self._scorers)]
        kill = asyncio.create_task(kill_when_asked(self._requests, [self._trainer, *others], self._reporter))
        started = time.monotonic()
        await self._trainer.stop(self._checkpoint_seconds)
        await asyncio.gather(*(child.stop(self._stop_seconds) for child in others))
        kill.cancel()
        if self._requests.stop.is_set():
            self._reporter.say(f"all processes have ended after {time.monotonic() - started:.1f} s")


async def measure_machine(probe: Child, environment: Mapping[str, str]) -> Machine:
    """What this machine has to offer, found out by a process of its own.

    Args:
        probe: The process.
        environment: Its environment.

    Raises:
        GaveUpError: It did not find out.
    """
    await probe.start(machines.PROBE, environment)
    code = await probe.wait()
    lines = probe.last_lines()
    try:
        return machines.parse(lines[-1])
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise GaveUpError(with_log(f"this machine could not be measured (exit code {code})", probe)) from error


async def stopped(requests: StopRequests) -> LocalResult:
    """The result of a run that a signal stops, once it has come."""
    await requests.stop.wait()
    return LocalResult(128 + requests.number, "to continue, add --resume")


async def kill_when_asked(requests: StopRequests, children: Sequence[Child], reporter: Reporter) -> NoReturn:
    """Kills children, once a second signal has come."""
    await requests.stop_at_once.wait()
    reporter.warn("stopping at once")
    while True:
        for child in children:
            child.kill()
        await asyncio.sleep(0.1)


def accuracy_of_version_0(folder: RunFolder) -> float | None:
    """Held-out accuracy of the model that the run began with; None where it has not been evaluated or cannot be read."""
    try:
        lines = read_metrics(folder.ledger / "metrics.jsonl")
    except LedgerError:
        return None
    return next((line.values.get("accuracy") for line in lines if line.event == "evaluation" and line.version == 0), None)


async def first_of(*coroutines: Awaitable[T]) -> T:
    """The result, or the exception, of whichever ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
