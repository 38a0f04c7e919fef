"""The processes of a local run: their ports and logs, what each is started with, and its share of the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spinrun_api.run import SpinRun
from spinrun_cli.local.child import Child, free_port
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.machine import GpuPlan, Machine, share_cores, share_gpus
from spinrun_protocol import commands
from spinrun_protocol.commands import Process
from spinrun_protocol.environment import PREFERENCE_KEY, ROLLOUTS, SCORERS, TERMINATION_LOG
from spinrun_protocol.machine import available_cores

LOOPBACK = "127.0.0.1"


class LocalRollout:
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


class LocalScorer:
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


@dataclass(frozen=True)
class Share:
    """What a vLLM server gets of the machine."""

    threads: int | None = None
    """Of OpenMP, on CPUs."""
    memory_share: float | None = None
    """Of a GPU's memory; None: vLLM's own choice."""
    environment: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class ProcessBuilder:
    """Makes the command lines and environments of a run's processes on a machine."""

    run: SpinRun
    folder: RunFolder
    machine: Machine
    environment: Mapping[str, str]
    """The user's, which has the key of the preference's endpoint and perhaps a number of threads for the trainer."""

    def vllm(self, rollout: LocalRollout) -> Process:
        """The vLLM of a rollout."""
        spec = self.run.spec
        share = self._share(rollout.index, among=spec.rollout.replicas)
        process = commands.vllm(
            self.run,
            accelerator=self.machine.accelerator,
            dtype=self.machine.dtype if spec.model.dtype == "auto" else spec.model.dtype,
            port=rollout.vllm_port,
            threads=share.threads,
            memory_share=share.memory_share,
        )
        return Process(process.command, process.environment | share.environment)

    def scorer(self, scorer: LocalScorer) -> Process:
        """The vLLM of a scorer."""
        scorers = self.run.spec.scorers
        assert scorers is not None, "there is one"
        share = self._share(self.run.spec.rollout.replicas + scorer.index, among=scorers.replicas)
        process = commands.scorer(
            self.run,
            accelerator=self.machine.accelerator,
            dtype=self.machine.dtype if scorers.dtype == "auto" else scorers.dtype,
            port=scorer.port,
            threads=share.threads,
            memory_share=share.memory_share,
        )
        return Process(process.command, process.environment | share.environment)

    def agent(self, rollout: LocalRollout) -> Process:
        """The agent of a rollout."""
        rollout.scratch.mkdir(parents=True, exist_ok=True)
        return commands.agent(
            run_file=str(self.folder.run_file),
            ledger=str(self.folder.ledger),
            scratch=str(rollout.scratch),
            port=rollout.agent_port,
            vllm_port=rollout.vllm_port,
            host=LOOPBACK,
        )

    def trainer(self, attempt: int, port: int, rollouts: Sequence[LocalRollout], scorers: Sequence[LocalScorer]) -> Process:
        """An attempt of the trainer, which finds rollouts and scorers at their present ports."""
        process = commands.trainer(
            self.run,
            run_file=str(self.folder.run_file),
            ledger=str(self.folder.ledger),
            attempt=attempt,
            port=port,
            host=LOOPBACK,
        )
        environment = {
            ROLLOUTS: ",".join(rollout.url for rollout in rollouts),
            TERMINATION_LOG: str(self.folder.termination_file),
        }
        if scorers:
            environment[SCORERS] = ",".join(scorer.url for scorer in scorers)
        if PREFERENCE_KEY in self.environment:
            environment[PREFERENCE_KEY] = self.environment[PREFERENCE_KEY]
        if self.machine.accelerator == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpu_plan().trainer)
        elif self.run.spec.method.overlap and "OMP_NUM_THREADS" not in self.environment:
            environment["OMP_NUM_THREADS"] = str(self._threads(self.run.spec.trainer.procs_per_node))
        return Process(process.command, process.environment | environment)

    def _share(self, index: int, *, among: int) -> Share:
        """What a vLLM server gets of the machine.

        Args:
            index: Of the server among all of them.
            among: Number of servers that work at the same time.
        """
        if self.machine.accelerator == "cpu":
            return Share(threads=self._threads(among))
        plan = self._gpu_plan()
        return Share(memory_share=plan.memory_share, environment={"CUDA_VISIBLE_DEVICES": ",".join(plan.servers[index])})

    def _threads(self, among: int) -> int:
        """Threads for each of the processes of one kind, on CPUs."""
        return share_cores(available_cores(), among, overlap=self.run.spec.method.overlap)

    def _gpu_plan(self) -> GpuPlan:
        spec = self.run.spec
        servers = [spec.rollout.tensor_parallel_size] * spec.rollout.replicas
        servers += [spec.scorers.tensor_parallel_size] * spec.scorers.replicas if spec.scorers is not None else []
        return share_gpus(self.machine.gpus, servers=servers, ranks=spec.trainer.procs_per_node)
