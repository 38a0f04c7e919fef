"""How vLLM is started on CPUs."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from spinrun_api.run import SpinRun
from spinrun_api.spec import Lora
from spinrun_protocol import commands
from support.engines import tiny_run


def flag(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def test_the_cpu_worker_that_is_named_exists() -> None:
    """By its source: importing it imports vLLM."""
    module, _, name = commands.CPU_WORKER.rpartition(".")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    classes = [node.name for node in ast.parse(Path(spec.origin).read_text()).body if isinstance(node, ast.ClassDef)]
    assert name in classes


def test_only_vllm_on_cpus_needs_our_code() -> None:
    run = tiny_run(Path("/model"))
    on_cpu = commands.vllm(run, accelerator="cpu", dtype="float32").command
    on_gpu = commands.vllm(run, accelerator="cuda", dtype="bfloat16").command
    assert flag(on_cpu, "worker-cls") == commands.CPU_WORKER
    assert "--worker-cls" not in on_gpu
    assert on_gpu[2] == commands.VLLM_SERVER


def test_recommended_sampling_parameters_are_ignored_and_the_server_hears_loopback_only() -> None:
    command = commands.vllm(tiny_run(Path("/model")), accelerator="cuda", dtype="bfloat16").command
    assert flag(command, "generation-config") == "vllm"
    assert flag(command, "host") == "127.0.0.1"


def test_log_probs_are_of_the_model_except_with_grpo_where_they_are_of_what_is_sampled_from() -> None:
    document = tiny_run(Path("/model")).to_document()
    assert "--logprobs-mode" not in commands.vllm(tiny_run(Path("/model")), accelerator="cuda", dtype="bfloat16").command
    document["spec"]["method"] = {"name": "grpo", "loss": "grpo"}
    mode = flag(commands.vllm(SpinRun.model_validate(document), accelerator="cuda", dtype="bfloat16").command, "logprobs-mode")
    # vLLM knows the word.
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    assert f'"{mode}"' in (Path(spec.origin).parent / "config" / "model.py").read_text()


def test_vllm_takes_weights_from_safetensors_alone() -> None:
    policy = commands.vllm(tiny_run(Path("/model")), accelerator="cuda", dtype="bfloat16")
    adapters = commands.vllm(tiny_run(Path("/model"), lora={"rank": 16}), accelerator="cpu", dtype="float32")
    document = tiny_run(Path("/model")).to_document()
    document["spec"] |= {"preference": {"rewardModel": {"source": "/reward"}}}
    scorer = commands.scorer(SpinRun.model_validate(document), accelerator="cpu", dtype="float32")
    assert {flag(process.command, "load-format") for process in (policy, adapters, scorer)} == {"safetensors"}
    # vLLM knows the word. By its source: importing it imports vLLM.
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    assert (
        '"safetensors": DefaultModelLoader'
        in (Path(spec.origin).parent / "model_executor" / "model_loader" / "__init__.py").read_text()
    )


def test_one_process_computes_on_a_cpu_unless_it_shares_the_model() -> None:
    alone, shared = (
        commands.vllm(tiny_run(Path("/model"), tensorParallelSize=size), accelerator="cpu", dtype="float32", threads=3)
        for size in (1, 2)
    )
    assert flag(alone.command, "distributed-executor-backend") == commands.ONE_PROCESS_EXECUTOR
    assert (alone.command[2], shared.command[2]) == (commands.CPU_SERVER, commands.VLLM_SERVER)
    assert find_spec(commands.CPU_SERVER) is not None
    assert alone.environment["OMP_NUM_THREADS"] == "3"
    assert "--distributed-executor-backend" not in shared.command
    assert "OMP_NUM_THREADS" not in shared.environment, "vLLM sets it for each of its workers"


def test_engine_arguments_win_over_our_own() -> None:
    run = tiny_run(Path("/model"), engineArgs={"kv-cache-memory-bytes": 2**28, "enforce-eager": "false"})
    command = commands.vllm(run, accelerator="cpu", dtype="float32").command
    assert flag(command, "kv-cache-memory-bytes") == str(2**28)
    assert "--enforce-eager" not in command


def test_vllm_is_started_for_adapters_only_where_they_are_trained() -> None:
    whole = commands.vllm(tiny_run(Path("/model")), accelerator="cuda", dtype="bfloat16")
    adapters = commands.vllm(tiny_run(Path("/model"), lora={"rank": 16}), accelerator="cuda", dtype="bfloat16")
    runtime = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    assert ("--enable-lora" in whole.command, runtime in whole.environment) == (False, False)
    assert ("--enable-lora" in adapters.command, adapters.environment[runtime]) == (True, "1")
    assert flag(adapters.command, "model") == "/model", "the base"
    assert flag(adapters.command, "max-loras") == "1"


@pytest.mark.parametrize(("rank", "largest"), [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (512, 512)])
def test_vllm_is_started_for_the_smallest_rank_that_it_knows_and_that_is_enough(rank: int, largest: int) -> None:
    process = commands.vllm(tiny_run(Path("/model"), lora={"rank": rank}), accelerator="cuda", dtype="bfloat16")
    assert flag(process.command, "max-lora-rank") == str(largest)


def test_the_ranks_are_those_of_vllm() -> None:
    """By its source: importing it imports vLLM."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "config" / "lora.py").read_text()
    (known,) = re.findall(r"^MaxLoRARanks = Literal(\[.*\])$", source, re.MULTILINE)
    assert tuple(ast.literal_eval(known)) == commands.LORA_RANKS
    (limit,) = (constraint.le for constraint in Lora.model_fields["rank"].metadata if hasattr(constraint, "le"))
    assert limit == commands.LORA_RANKS[-1]
