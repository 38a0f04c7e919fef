"""Which arguments of vLLM a run may set."""

import copy
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.documents import InvalidDocumentError, parse_run
from spinrun_api.spec.engine_args import FREE_BEGINNINGS, REFUSED_IN_ROLLOUTS, REFUSED_IN_SCORERS, refusal
from unit.api.invalid_runs import MINIMAL, OWN

Json = dict[str, Any]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operations.md"


def with_arguments(block: str, arguments: Json) -> Json:
    """A run with arguments of vLLM in a block."""
    document = copy.deepcopy(MINIMAL)
    document["spec"][block] = {"engineArgs": arguments}
    if block == "scorer":
        document["spec"]["preference"] = {"ranker": OWN}
    return document


def problems(block: str, arguments: Json) -> list[str]:
    """What is wrong with arguments of vLLM in a block."""
    try:
        parse_run(with_arguments(block, arguments))
    except InvalidDocumentError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tokenizer", "set spec.model.tokenizer instead"),
        ("trust-remote-code", "set spec.model.trustRemoteCode instead"),
        ("chat-template", "set spec.model.chatTemplate instead"),
        ("enable-lora", "set spec.trainer.lora instead"),
        ("tensor-parallel-size", "set tensorParallelSize instead"),
        ("data-parallel-size", "set replicas instead"),
        ("host", "is set by SpinRun"),
        ("generation-config", "is set by SpinRun"),
        ("distributed-executor-backend", "is set by SpinRun"),
        ("middleware", "load code"),
        ("api-key", "to the network"),
        ("load-format", "safetensors"),
    ],
)
def test_refused_argument_names_what_is_meant_instead(name: str, remedy: str) -> None:
    (problem,) = problems("rollout", {name: "x", "max-num-seqs": 8})
    assert problem.startswith(f"spec.rollout.engineArgs.{name}: ")
    assert remedy in problem


def test_every_refused_argument_is_told_at_once() -> None:
    arguments = {"host": "0.0.0.0", "trust-remote-code": "true", "middleware": "os.system", "model": "evil/x", "port": 9999}
    assert [problem.split(": ")[0].rpartition(".")[2] for problem in problems("rollout", arguments)] == list(arguments)


@pytest.mark.parametrize("refused", [REFUSED_IN_ROLLOUTS, REFUSED_IN_SCORERS], ids=["rollouts", "scorers"])
def test_no_other_spelling_of_a_refused_argument_is_taken(refused: dict[str, str]) -> None:
    beginnings = {name[:length] for name in refused for length in range(1, len(name) + 1)} - set(FREE_BEGINNINGS)
    taken = [name for each in beginnings for name in (each, f"no-{each}") if refusal(name, refused) is None]
    assert taken == []


@pytest.mark.parametrize("name", ["host", "chat-template", "runner", "trust-remote-code", "enable-lora", "dtype"])
def test_scorers_refuse_theirs(name: str) -> None:
    (problem,) = problems("scorer", {name: "x"})
    assert problem.startswith(f"spec.scorer.engineArgs.{name}: ")


@pytest.mark.parametrize(
    ("block", "arguments"),
    [
        ("rollout", {"max-num-seqs": 256, "gpu-memory-utilization": "0.85", "max-model-len": "auto", "enforce-eager": "true"}),
        ("rollout", {"seed": -1, "kv-cache-dtype": "fp8", "watermark": "0.1", "no-enable-prefix-caching": "true"}),
        ("rollout", {"pipeline-parallel-size": 2, "attention-backend": "FLASH_ATTN", "max-num-batched-tokens": "8k"}),
        ("scorer", {"max-model-len": 4096, "quantization": "fp8", "convert": "classify"}),
        ("scorer", {"hf-overrides": '{"architectures": ["Qwen3ForSequenceClassification"]}'}),
    ],
)
def test_what_is_nobodys_own_may_be_set(block: str, arguments: Json) -> None:
    assert problems(block, arguments) == []


@pytest.mark.parametrize(
    "value", ["--host=0.0.0.0", "-tp=4", "-", "-0.5", "8\n", "\x9b31m", "", "8" * 5000, 2**63, -(2**63) - 1, None, 1.5]
)
def test_value_is_one_value(value: object) -> None:
    (problem,) = problems("rollout", {"max-num-seqs": value})
    assert problem.startswith("spec.rollout.engineArgs.max-num-seqs")


def test_negative_number_is_written_without_quotes() -> None:
    assert problems("rollout", {"max-model-len": -1}) == []
    (problem,) = problems("rollout", {"max-model-len": "-1"})
    assert "write -1, without quotes" in problem


def test_page_lists_every_refused_argument() -> None:
    text = PAGE.read_text()
    assert [name for name in REFUSED_IN_ROLLOUTS | REFUSED_IN_SCORERS if f"`{name}`" not in text] == []
