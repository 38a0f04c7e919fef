"""How the processes of a run are started: one place for the operator's pods and for `spinrun local`.

Pure functions from a run to a command line and an environment; they start nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spinrun_api.run import SpinRun

Accelerator = Literal["cpu", "cuda"]

PYTHON = "python3"
"""The interpreter of a container: vLLM's own image knows it by no other name."""

VLLM_PORT = 8000
AGENT_PORT = 8100
HEALTH_PORT = 8101  # of agents in pods, for the kubelet's probes alone
TRAINER_PORT = 8200
RENDEZVOUS_PORT = 29400

# Name under which vLLM serves the policy, whatever its source.
SERVED_MODEL = "policy"

# Loading a pickle runs code, and vLLM would load one where it finds nothing else.
LOAD_FORMAT = "safetensors"

# vLLM's own CPU worker keeps the old output layer when it reloads a model with tied embeddings.
CPU_WORKER = "spinrun_worker.vllm.cpu_worker.CpuWorker"

# On CPUs vLLM computes in a third process only so that it can set the OpenMP environment of a process that it starts. Ours is
# set from outside, so that the engine can compute itself: one Python with torch and vLLM less, 0.7 GB and seconds of start.
# By its path instead of "uni", which vLLM would take for "mp".
ONE_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

VLLM_SERVER = "vllm.entrypoints.openai.api_server"
# The same with an engine that shares the server's memory, where that engine computes itself.
CPU_SERVER = "spinrun_worker.vllm.cpu"

CPU_CACHE_BYTES = 1 << 30


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks of adapters that vLLM can be started for (0.32, vllm/config/lora.py)."""

Arguments = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Process:
    """A command line with the environment it adds."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict[str, str])


def vllm(
    run: SpinRun,
    *,
    accelerator: Accelerator,
    dtype: str,
    port: int = VLLM_PORT,
    threads: int | None = None,
    memory_share: float | None = None,
    lengths_file: str | None = None,
) -> Process:
    """vLLM's OpenAI server, on the loopback interface only: its development endpoints load weights.

    Args:
        run: The run.
        accelerator: What vLLM computes with.
        dtype: vLLM's dtype, resolved (never auto on a CPU).
        port: Where it listens.
        threads: OpenMP's threads, on CPUs; None for as many as there are cores.
        memory_share: Share of a GPU's memory, 0 to 1; None for vLLM's own choice.
        lengths_file: Where vLLM finds its `max-model-len` if the spec leaves lengths open, which depend on the model's files;
            None takes the defaults.
    """
    rollout, model = run.spec.rollout, run.spec.model
    arguments: Arguments = {
        "model": model.source,
        "served-model-name": SERVED_MODEL,
        "host": "127.0.0.1",
        "port": port,
        "dtype": dtype,
        "load-format": LOAD_FORMAT,
        "tensor-parallel-size": rollout.tensor_parallel_size,
        "enable-prefix-caching": True,
        # What the model's authors recommend for sampling would change the distribution that the loss takes samples to be from.
        # Their end tokens still count.
        "generation-config": "vllm",
        "disable-uvicorn-access-log": True,
    }
    if lengths_file is not None and None in (run.spec.data.max_prompt_tokens, rollout.max_tokens):
        arguments["config"] = lengths_file
    else:
        arguments["max-model-len"] = run.spec.max_prompt_tokens + run.spec.max_tokens
    if model.revision:
        arguments["revision"] = model.revision
    if model.tokenizer:
        arguments["tokenizer"] = model.tokenizer
    if model.trust_remote_code:
        arguments["trust-remote-code"] = True
    if run.spec.method.loss == "grpo":
        # Of the distribution that is sampled from, temperature and top-p included, whose gradient grpo takes.
        arguments["logprobs-mode"] = "processed_logprobs"
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    if run.spec.trainer.lora is not None:
        # The model is the base; each version's adapter is loaded while it runs, one at a time.
        largest = next(rank for rank in LORA_RANKS if rank >= run.spec.trainer.lora.rank)
        arguments |= {"enable-lora": True, "max-lora-rank": largest, "max-loras": 1}
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if accelerator == "cpu":
        arguments |= {"max-num-seqs": 256, "worker-cls": CPU_WORKER}
    return _server(
        arguments, rollout.engine_args, environment, accelerator=accelerator, threads=threads, memory_share=memory_share
    )


def scorer(
    run: SpinRun,
    *,
    accelerator: Accelerator,
    dtype: str,
    port: int = VLLM_PORT,
    threads: int | None = None,
    memory_share: float | None = None,
) -> Process:
    """vLLM's server of the preference's own model, on the loopback interface only: it asks nobody for a token.

    Args:
        run: The run.
        accelerator: What vLLM computes with.
        dtype: vLLM's dtype, resolved (never auto on a CPU).
        port: Where it listens.
        threads: OpenMP's threads, on CPUs; None for as many as there are cores.
        memory_share: Share of a GPU's memory, 0 to 1; None for vLLM's own choice.
    """
    model, scorers = run.spec.preference.own_model, run.spec.scorers
    assert model is not None, "only a run with a model of its own has scorers"
    assert scorers is not None, "the same"
    arguments: Arguments = {
        "model": model.served_name,
        "runner": "pooling",
        # vLLM would turn a model that is not a classifier into one of embeddings, and score texts by how alike they are.
        "pooler-config": '{"task": "classify"}',
        "host": "127.0.0.1",
        "port": port,
        "dtype": dtype,
        "load-format": LOAD_FORMAT,
        # What fits into the memory, if that is less than the model can read.
        "max-model-len": "auto",
        "tensor-parallel-size": scorers.tensor_parallel_size,
        "disable-uvicorn-access-log": True,
    }
    if model.revision:
        arguments["revision"] = model.revision
    return _server(arguments, scorers.engine_args, {}, accelerator=accelerator, threads=threads, memory_share=memory_share)


def _server(
    arguments: Arguments,
    engine_args: Mapping[str, str | int],
    environment: dict[str, str],
    *,
    accelerator: Accelerator,
    threads: int | None,
    memory_share: float | None,
) -> Process:
    """A vLLM server with what every one of ours is given. The user's `engine_args` win."""
    environment = environment | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if accelerator == "cpu":
        # vLLM's CPU block of 128 tokens is longer than many prompts, so that the prefix cache would never hit and each of a
        # prompt's samples would pay for the prompt again. 32 is the smallest that starts.
        arguments = arguments | {"block-size": 32, "enforce-eager": True, "kv-cache-memory-bytes": CPU_CACHE_BYTES}
        environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        if arguments["tensor-parallel-size"] == 1:
            arguments["distributed-executor-backend"] = ONE_PROCESS_EXECUTOR
            environment |= {"OMP_NUM_THREADS": str(threads)} if threads is not None else {}
    if memory_share is not None:
        arguments = arguments | {"gpu-memory-utilization": memory_share}
    arguments = {**arguments, **engine_args}
    module = CPU_SERVER if arguments.get("distributed-executor-backend") == ONE_PROCESS_EXECUTOR else VLLM_SERVER
    return Process([PYTHON, "-m", module, *_flags(arguments)], environment)


def _flags(arguments: Arguments) -> list[str]:
    """--name value for each; true is a bare flag, false leaves it out. Text may say so too."""
    flags: list[str] = []
    for name, value in arguments.items():
        if value is True or value == "true":
            flags.append(f"--{name}")
        elif value is not False and value != "false":
            flags += [f"--{name}", str(value)]
    return flags


def agent(
    *,
    run_file: str,
    ledger: str,
    scratch: str,
    port: int = AGENT_PORT,
    health_port: int | None = None,
    vllm_port: int = VLLM_PORT,
    host: str = "",
) -> Process:
    """The agent beside a vLLM.

    Args:
        run_file: Path of the resolved SpinRun.
        ledger: Path of the run's own folder; read-only is enough.
        scratch: Path of fast local space for two versions.
        port: Where it listens.
        health_port: Where it also answers probes, and nothing else; None for nowhere.
        vllm_port: Where vLLM listens.
        host: Address to listen on; empty for all.
    """
    command = [PYTHON, "-m", "spinrun_worker.rollout", "--run", run_file, "--ledger", ledger, "--scratch", scratch]
    command += ["--port", str(port), "--vllm", f"http://127.0.0.1:{vllm_port}"]
    return Process(command + _listening(health_port, host))


def rollout_check(*, run_file: str, lengths_file: str) -> Process:
    """What looks at a rollout's model before its vLLM starts.

    Args:
        run_file: Path of the resolved SpinRun.
        lengths_file: Where to write vLLM's `max-model-len`.
    """
    return Process([PYTHON, "-m", "spinrun_worker.rollout.check", "--run", run_file, "--lengths", lengths_file])


def scorer_agent(
    *, port: int = AGENT_PORT, health_port: int | None = None, vllm_port: int = VLLM_PORT, host: str = ""
) -> Process:
    """The agent beside a scorer's vLLM, which lets in who has the run's token.

    Args:
        port: Where it listens.
        health_port: Where it also answers probes, and nothing else; None for nowhere.
        vllm_port: Where vLLM listens.
        host: Address to listen on; empty for all.
    """
    command = [PYTHON, "-m", "spinrun_worker.scorer", "--port", str(port), "--vllm", f"http://127.0.0.1:{vllm_port}"]
    return Process(command + _listening(health_port, host))


def _listening(health_port: int | None, host: str) -> list[str]:
    options = [] if health_port is None else ["--health-port", str(health_port)]
    return options + (["--host", host] if host else [])


def trainer(
    run: SpinRun,
    *,
    run_file: str,
    ledger: str,
    attempt: int,
    node_rank: str = "0",
    rendezvous: str | None = None,
    port: int = TRAINER_PORT,
    host: str = "",
) -> Process:
    """The launcher of the trainer's ranks on one node.

    Args:
        run: The run.
        run_file: Path of the resolved SpinRun.
        ledger: Path of the run's own folder.
        attempt: Number of the attempt.
        node_rank: Number of this node, or a reference without a shell such as $(JOB_COMPLETION_INDEX), which Kubernetes expands.
        rendezvous: HOST:PORT of node 0; None for one node, which takes any free port.
        port: Where rank 0 serves progress and metrics.
        host: Address to listen on; empty for all.
    """
    trainer = run.spec.trainer
    command = [
        PYTHON,
        "-m",
        "spinrun_worker.trainer.launch",
        "--run",
        run_file,
        "--ledger",
        ledger,
        "--attempt",
        str(attempt),
    ]
    command += [
        "--nodes",
        str(trainer.nodes),
        "--procs-per-node",
        str(trainer.procs_per_node),
        "--node-rank",
        node_rank,
    ]
    command += ["--port", str(port)]
    if host:
        command += ["--host", host]
    if rendezvous:
        command += ["--rendezvous", rendezvous]
    return Process(command)
