"""How vLLM is started on CPUs."""

import ast
from importlib.util import find_spec
from pathlib import Path

from engines import tiny_run
from spinrun_api import processes


def flag(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def test_the_cpu_worker_that_is_named_exists() -> None:
    """By its source: importing it imports vLLM."""
    module, _, name = processes.CPU_WORKER.rpartition(".")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    classes = [node.name for node in ast.parse(Path(spec.origin).read_text()).body if isinstance(node, ast.ClassDef)]
    assert name in classes


def test_only_vllm_on_cpus_needs_our_code() -> None:
    run = tiny_run(Path("/model"))
    on_cpu = processes.vllm(run, accelerator="cpu", dtype="float32").command
    on_gpu = processes.vllm(run, accelerator="cuda", dtype="bfloat16").command
    assert flag(on_cpu, "worker-cls") == processes.CPU_WORKER
    assert "--worker-cls" not in on_gpu
    assert on_gpu[2] == processes.VLLM_SERVER


def test_recommended_sampling_parameters_are_ignored_and_the_server_hears_loopback_only() -> None:
    command = processes.vllm(tiny_run(Path("/model")), accelerator="cuda", dtype="bfloat16").command
    assert flag(command, "generation-config") == "vllm"
    assert flag(command, "host") == "127.0.0.1"


def test_one_process_computes_on_a_cpu_unless_it_shares_the_model() -> None:
    alone, shared = (
        processes.vllm(tiny_run(Path("/model"), tensorParallelSize=size), accelerator="cpu", dtype="float32", threads=3)
        for size in (1, 2)
    )
    assert flag(alone.command, "distributed-executor-backend") == processes.ONE_PROCESS_EXECUTOR
    assert (alone.command[2], shared.command[2]) == (processes.CPU_SERVER, processes.VLLM_SERVER)
    assert find_spec(processes.CPU_SERVER) is not None
    assert alone.environment["OMP_NUM_THREADS"] == "3"
    assert "--distributed-executor-backend" not in shared.command
    assert "OMP_NUM_THREADS" not in shared.environment, "vLLM sets it for each of its workers"


def test_engine_arguments_win_over_our_own() -> None:
    run = tiny_run(Path("/model"), engineArgs={"kv-cache-memory-bytes": 2**28, "enforce-eager": "false"})
    command = processes.vllm(run, accelerator="cpu", dtype="float32").command
    assert flag(command, "kv-cache-memory-bytes") == str(2**28)
    assert "--enforce-eager" not in command
