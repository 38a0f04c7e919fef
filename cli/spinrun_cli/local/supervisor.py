"""Keeps the processes of a local run alive until the trainer has ended, and then none of them.

    probe      once: which number type vLLM shall compute in
    vLLM       restarted when it dies             agent      likewise
    scorer     likewise, where the run serves the model that prefers
    trainer    one attempt after the other, as its exit code says

All start together: vLLM takes longest, and the trainer loads and publishes the first version meanwhile.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import httpx
from pydantic import ValidationError

from spinrun_api.run import SpinRun
from spinrun_cli.local import machine as machines
from spinrun_cli.local.child import Child, free_port
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.machine import Machine
from spinrun_cli.local.policy import backoff_seconds
from spinrun_cli.local.reporter import Reporter
from spinrun_cli.show.snapshot import Snapshot, WindowFigures
from spinrun_protocol import commands
from spinrun_protocol.commands import Process
from spinrun_protocol.environment import PREFERENCE_KEY, ROLLOUTS, SCORERS, TERMINATION_LOG, TOKEN_FILE
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.machine import available_cores
from spinrun_protocol.policy import Action, decide
from spinrun_protocol.termination import LastWords
from spinrun_protocol.wire import Progress
from spinrun_worker.ledger import LedgerError, read_metrics

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
MAX_DEATHS = 5
"""A vLLM, agent or scorer that has died this often and never answered will not answer the next time either."""
POLL_SECONDS = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How the run ended, for now."""

    exit_code: int
    """Exit code of the command."""
    message: str
    """What happened and what to do."""
    words: LastWords | None = None
    """What the trainer said as it ended."""


@dataclass(frozen=True)
class Place:
    """What a vLLM server gets of the machine."""

    threads: int | None = None
    """Of OpenMP, on CPUs."""
    memory_share: float | None = None
    """Of a GPU's memory; None: vLLM's own choice."""
    environment: dict[str, str] = field(default_factory=dict[str, str])


class GaveUpError(Exception):
    """A process does not start, however often."""


class Rollout:
    """A vLLM and its agent, and their ports."""

    def __init__(self, index: int, folder: RunFolder, ports: set[int]) -> None:
        self.index = index
        self.vllm = Child(f"vllm-{index}", folder.logs / f"vllm-{index}.log")
        self.agent = Child(f"agent-{index}", folder.logs / f"agent-{index}.log")
        self.scratch = folder.scratch / f"agent-{index}"
        self.vllm_port = free_port(ports)
        self.agent_port = free_port(ports)

    @property
    def url(self) -> str:
        """Where the trainer finds the agent."""
        return f"http://{LOOPBACK}:{self.agent_port}"


class Scorer:
    """A vLLM that serves the preference's model, and its port. The trainer asks it without an agent in between: it listens on the
    loopback interface, like all that the rollouts do."""

    def __init__(self, index: int, folder: RunFolder, ports: set[int]) -> None:
        self.index = index
        self.vllm = Child(f"scorer-{index}", folder.logs / f"scorer-{index}.log")
        self.port = free_port(ports)

    @property
    def url(self) -> str:
        """Where the trainer finds it."""
        return f"http://{LOOPBACK}:{self.port}"


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
        """Prepare everything and start nothing.

        machine: None: found out by the probe. backoff: seconds to wait after a number of failures in a row.
        checkpoint_seconds: time for the trainer to end in good order. stop_seconds: the same for the others.
        """
        self.run_ = run
        self.folder = folder
        self.reporter = reporter
        self.machine = machine
        self.backoff = backoff
        self.checkpoint_seconds = checkpoint_seconds
        self.stop_seconds = stop_seconds
        self.snapshot = Snapshot(run.metadata.name, news=[f"logs in {folder.logs}"])
        self._ports: set[int] = set()
        self.probe = Child("probe", folder.logs / "probe.log")
        self.rollouts = [Rollout(index, folder, self._ports) for index in range(run.spec.rollout.replicas)]
        scorers = run.spec.scorers
        self.scorers = [Scorer(index, folder, self._ports) for index in range(scorers.replicas if scorers is not None else 0)]
        self.trainer = Child("trainer", folder.logs / "trainer.log")
        self.trainer_port = 0
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._environment[TOKEN_FILE] = str(folder.token_file)
        self._preference_key = self._environment.pop(PREFERENCE_KEY, None)
        self._client = httpx.AsyncClient(timeout=5.0, trust_env=False)
        self._signals = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        # Children that we end ourselves, because the port of one that they talk to has changed.
        self._moved: set[Child] = set()

    async def run(self) -> Outcome:
        """Run until the trainer is done, gives up, or a signal asks to stop. No child is left when this returns."""
        watch = asyncio.create_task(self._watch())
        try:
            with self._signals_handled():
                outcome = await first_of(self._work(), self._asked_to_stop())
                await self._end_all()
                return outcome
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._client.aclose()

    async def _work(self) -> Outcome:
        try:
            self.machine = self.machine or await self._probe()
            return await first_of(
                self._train(),
                *(self._keep_vllm(rollout, self.machine) for rollout in self.rollouts),
                *(self._keep_agent(rollout) for rollout in self.rollouts),
                *(self._keep_scorer(scorer, self.machine) for scorer in self.scorers),
            )
        except GaveUpError as error:
            return Outcome(ExitCode.FAILED, str(error))

    async def _asked_to_stop(self) -> Outcome:
        await self._stop.wait()
        return Outcome(128 + self._signals, "go on with --resume")

    async def _probe(self) -> Machine:
        self._set_state(self.probe, "starting")
        await self.probe.start(machines.PROBE, self._environment)
        code = await self.probe.wait()
        self._set_state(self.probe, None)
        lines = self.probe.last_lines()
        try:
            return machines.parse(lines[-1])
        except (IndexError, ValueError, KeyError, TypeError) as error:
            raise GaveUpError(_with_log(f"this machine could not be measured (exit code {code})", self.probe)) from error

    # Rollouts and scorers

    async def _keep_vllm(self, rollout: Rollout, machine: Machine) -> Outcome:
        def move() -> None:
            rollout.vllm_port = free_port(self._ports)
            self._restart(rollout.agent)

        return await self._keep(
            rollout.vllm,
            lambda: self._vllm_process(rollout, machine),
            lambda: f"http://{LOOPBACK}:{rollout.vllm_port}/health",
            move,
        )

    async def _keep_agent(self, rollout: Rollout) -> Outcome:
        def move() -> None:
            rollout.agent_port = free_port(self._ports)
            self._restart(self.trainer)

        return await self._keep(rollout.agent, lambda: self._agent_process(rollout), lambda: f"{rollout.url}/healthz", move)

    async def _keep_scorer(self, scorer: Scorer, machine: Machine) -> Outcome:
        def move() -> None:
            scorer.port = free_port(self._ports)
            self._restart(self.trainer)

        return await self._keep(scorer.vllm, lambda: self._scorer_process(scorer, machine), lambda: f"{scorer.url}/health", move)

    async def _keep(
        self, child: Child, process: Callable[[], Process], health_url: Callable[[], str], move: Callable[[], None]
    ) -> Outcome:
        """Start a child again whenever it dies. Raises GaveUpError when it never answers."""
        deaths, ever_healthy = 0, False
        while True:
            self._set_state(child, "restarting" if deaths else "starting")
            await self._start(child, process)
            code, healthy = await self._life(child, health_url())
            if child in self._moved:
                continue
            deaths = 1 if healthy else deaths + 1
            ever_healthy = ever_healthy or healthy
            self._set_state(child, "died")
            if child.found_port_taken():
                self.reporter.warn(f"{child.name}: somebody else took its port; another one is tried")
                move()
            elif deaths == 1:
                self.reporter.warn(_with_log(f"{child.name} ended with exit code {code} and is started again", child, count=5))
            if deaths >= MAX_DEATHS and not ever_healthy:
                raise GaveUpError(_with_log(f"{child.name} does not start: exit code {code}, {deaths} times", child))
            await asyncio.sleep(self.backoff(deaths))

    async def _life(self, child: Child, health_url: str) -> tuple[int, bool]:
        """Wait for a child's end. Its exit code, and whether it ever answered."""
        ended = asyncio.create_task(child.wait())
        healthy = False
        while not ended.done():
            if not healthy and await self._answers(health_url):
                healthy = True
                self._set_state(child, "ready")
            await asyncio.wait({ended}, timeout=POLL_SECONDS)
        return ended.result(), healthy

    async def _answers(self, url: str) -> bool:
        with suppress(httpx.HTTPError):
            return (await self._client.get(url)).is_success
        return False

    async def _start(self, child: Child, process: Callable[[], Process]) -> None:
        """Start a life with the ports of this moment, and end it again if one of them moved while it was being started."""
        self._moved.discard(child)
        await child.start(process(), self._environment)
        if child in self._moved:
            child.terminate()

    def _restart(self, child: Child) -> None:
        """End a child so that it is started anew with other ports; that is no failure of its own."""
        self._moved.add(child)
        child.terminate()

    def _vllm_process(self, rollout: Rollout, machine: Machine) -> Process:
        spec = self.run_.spec
        dtype = machine.dtype if spec.model.dtype == "auto" else spec.model.dtype
        place = self._place(machine, rollout.index, among=len(self.rollouts))
        process = commands.vllm(
            self.run_,
            accelerator=machine.accelerator,
            dtype=dtype,
            port=rollout.vllm_port,
            threads=place.threads,
            memory_share=place.memory_share,
        )
        return Process(process.command, process.environment | place.environment)

    def _scorer_process(self, scorer: Scorer, machine: Machine) -> Process:
        scorers = self.run_.spec.scorers
        assert scorers is not None, "there is one"
        place = self._place(machine, len(self.rollouts) + scorer.index, among=len(self.scorers))
        process = commands.scorer(
            self.run_,
            accelerator=machine.accelerator,
            dtype=machine.dtype if scorers.dtype == "auto" else scorers.dtype,
            port=scorer.port,
            threads=place.threads,
            memory_share=place.memory_share,
        )
        return Process(process.command, process.environment | place.environment)

    def _place(self, machine: Machine, index: int, *, among: int) -> Place:
        """What a vLLM server gets of the machine. index: among all servers. among: those that work at the same time."""
        if machine.accelerator == "cpu":
            return Place(threads=self._threads(among))
        plan = self._gpu_plan(machine)
        return Place(memory_share=plan.memory_share, environment={"CUDA_VISIBLE_DEVICES": ",".join(plan.servers[index])})

    def _threads(self, among: int) -> int:
        """Threads for each of the processes of one kind, on CPUs."""
        return machines.share_cores(available_cores(), among, overlap=self.run_.spec.method.overlap)

    def _gpu_plan(self, machine: Machine) -> machines.GpuPlan:
        spec = self.run_.spec
        servers = [spec.rollout.tensor_parallel_size] * len(self.rollouts)
        servers += [spec.scorers.tensor_parallel_size] * len(self.scorers) if spec.scorers is not None else []
        return machines.share_gpus(machine.gpus, servers=servers, ranks=spec.trainer.procs_per_node)

    def _agent_process(self, rollout: Rollout) -> Process:
        rollout.scratch.mkdir(parents=True, exist_ok=True)
        return commands.agent(
            run_file=str(self.folder.run_file),
            ledger=str(self.folder.ledger),
            scratch=str(rollout.scratch),
            port=rollout.agent_port,
            vllm_port=rollout.vllm_port,
            host=LOOPBACK,
        )

    # Trainer

    async def _train(self) -> Outcome:
        """One attempt after the other, until one completes or no other is to follow."""
        lifecycle = self.run_.spec.lifecycle
        failures = 0
        while True:
            code, words = await self._attempt()
            action = decide(code, lifecycle.failure_policy, disrupted=self.trainer in self._moved).action
            what = words.message if words else f"exit code {code}, and no last words"
            if action is Action.COMPLETE:
                return Outcome(ExitCode.COMPLETE, what, words)
            if action is Action.AWAIT_LEDGER:
                return Outcome(ExitCode.FAILED, f"the ledger cannot be written: {what}; then go on with --resume", words)
            if action is Action.FAIL:
                return Outcome(_exit_code(code), f"the trainer ended: {what} (log: {self.trainer.log})", words)
            failures += action is Action.RESTART
            if failures > lifecycle.backoff_limit:
                limit = f"after {failures} failed attempts (lifecycle.backoffLimit {lifecycle.backoff_limit})"
                return Outcome(ExitCode.FAILED, _with_log(f"the trainer failed {limit}: {what}", self.trainer), words)
            seconds = self.backoff(max(failures, 1))
            self._set_state(self.trainer, "restarting")
            self.reporter.warn(f"attempt {self.snapshot.attempt} of the trainer ended: {what}; the next starts in {seconds:g} s")
            await asyncio.sleep(seconds)

    async def _attempt(self) -> tuple[int, LastWords | None]:
        """One life of the trainer: its exit code and last words."""
        self.folder.forget_last_words()
        attempt = self.folder.next_attempt()
        self.snapshot = replace(self.snapshot, attempt=attempt)
        self.trainer_port = free_port(self._ports)
        self._set_state(self.trainer, "starting")
        await self._start(self.trainer, lambda: self._trainer_process(attempt))
        code = await self.trainer.wait()
        return code, self.folder.last_words()

    def _trainer_process(self, attempt: int) -> Process:
        process = commands.trainer(
            self.run_,
            run_file=str(self.folder.run_file),
            ledger=str(self.folder.ledger),
            attempt=attempt,
            port=self.trainer_port,
            host=LOOPBACK,
        )
        environment = {
            ROLLOUTS: ",".join(rollout.url for rollout in self.rollouts),
            TERMINATION_LOG: str(self.folder.last_words_file),
        }
        if self.scorers:
            environment[SCORERS] = ",".join(scorer.url for scorer in self.scorers)
        if self._preference_key is not None:
            environment[PREFERENCE_KEY] = self._preference_key
        if self.machine is not None and self.machine.accelerator == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpu_plan(self.machine).trainer)
        elif self.run_.spec.method.overlap and "OMP_NUM_THREADS" not in self._environment:
            environment["OMP_NUM_THREADS"] = str(self._threads(self.run_.spec.trainer.procs_per_node))
        return Process(process.command, process.environment | environment)

    # Watching and ending

    async def _watch(self) -> None:
        """Ask rank 0 how far it is, and show it."""
        while True:
            await self._look()
            self.reporter.show(self.snapshot)
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        if not self.trainer.running:
            return
        try:
            response = await self._client.get(f"http://{LOOPBACK}:{self.trainer_port}/progress")
            progress = Progress.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError):
            return  # not up yet, or about to end
        if progress.uid != self.run_.metadata.uid:
            return
        self._set_state(self.trainer, "ready")
        if progress != self.snapshot.progress:
            self.folder.save_progress(progress)
        self.snapshot = replace(self.snapshot, progress=progress, news=())
        if not self.snapshot.windows and progress.metrics.accuracy is not None:
            accuracy = self._accuracy_of_version_0()
            self.snapshot = replace(self.snapshot, windows=[] if accuracy is None else [WindowFigures(0, accuracy)])

    def _accuracy_of_version_0(self) -> float | None:
        try:
            lines = read_metrics(self.folder.ledger / "metrics.jsonl")
        except LedgerError:
            return None
        return next((line.values.get("accuracy") for line in lines if line.event == "evaluation" and line.version == 0), None)

    def _set_state(self, child: Child, state: str | None) -> None:
        """Notes the state of a child that there is to show; None: it is gone for good."""
        others = {name: known for name, known in self.snapshot.children.items() if state or name != child.name}
        self.snapshot = replace(self.snapshot, children=others | ({child.name: state} if state else {}))

    @contextmanager
    def _signals_handled(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        self._signals = number
        self._stop.set()
        if self.trainer.running:
            self.reporter.say("stopping: the trainer saves a checkpoint; Ctrl-C again stops at once")

    async def _end_all(self) -> None:
        """End every child: the trainer first, while it can still save, then the others."""
        rollouts = (child for rollout in self.rollouts for child in (rollout.agent, rollout.vllm))
        others = [self.probe, *rollouts, *(scorer.vllm for scorer in self.scorers)]
        hurry = asyncio.create_task(self._kill_when_asked([self.trainer, *others]))
        started = time.monotonic()
        await self.trainer.stop(self.checkpoint_seconds)
        await asyncio.gather(*(child.stop(self.stop_seconds) for child in others))
        hurry.cancel()
        if self._stop.is_set():
            self.reporter.say(f"all processes have ended after {time.monotonic() - started:.1f} s")

    async def _kill_when_asked(self, children: list[Child]) -> None:
        await self._hurry.wait()
        self.reporter.warn("stopping at once")
        while True:
            for child in children:
                child.kill()
            await asyncio.sleep(0.1)


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


def _exit_code(code: int) -> int:
    """The command's own exit code for a trainer that is not to be tried again."""
    return code if code == ExitCode.INVALID_CONFIGURATION else ExitCode.FAILED


def _with_log(message: str, child: Child, *, count: int = 20) -> str:
    lines = child.last_lines(count)
    return "\n".join([f"{message}. The end of {child.log}:", *(f"  | {line}" for line in lines or ["(empty)"])])
