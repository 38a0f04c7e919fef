"""What a config.json says against a run, in vLLM's own terms."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.documents import parse_run
from spinrun_api.run import SpinRun
from spinrun_api.spec import Scorer
from spinrun_protocol.commands import vllm
from spinrun_protocol.model_limits import (
    fitted,
    lengths_that_shrank,
    limit_of,
    parse_config,
    problems_with_model,
    problems_with_scorer,
)
from unit.operator.world import run_of

Json = dict[str, Any]

LLAMA: Json = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 32000,
}
ROPE_IN_POSITIONS = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


def run_with(**blocks: Any) -> SpinRun:
    """A run; `data` beside its prompts."""
    data = {"prompts": {"source": "arithmetic"}} | blocks.pop("data", {})
    return run_of(data=data, **blocks)


def problems(config: Json, **blocks: Any) -> list[str]:
    return [str(problem) for problem in problems_with_model(run_with(**blocks), config)]


@pytest.mark.parametrize(
    ("config", "want"),
    [
        pytest.param({"model_type": "llama", "max_position_embeddings": 512}, 512, id="llama"),
        pytest.param({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024, id="gpt2"),
        pytest.param({"model_type": "gpt2"}, 1024, id="gpt2 that does not say"),
        pytest.param({"model_type": "falcon"}, 2048, id="falcon that does not say"),
        pytest.param({"model_type": "mpt", "max_seq_len": 2048}, 2048, id="mpt"),
        pytest.param({"model_type": "bloom", "seq_length": 2048}, 2048, id="bloom"),
        pytest.param({"max_position_embeddings": 8192, "seq_length": 2048}, 2048, id="the smallest counts"),
        pytest.param({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072, id="cohere's own"),
        pytest.param({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400, id="scaled"),
        pytest.param(
            {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "linear", "factor": 2}}, 200, id="scaled, new"
        ),
        pytest.param(
            {"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": None}}, 100, id="without factor"
        ),
        pytest.param({"max_position_embeddings": 131072, "rope_scaling": ROPE_IN_POSITIONS}, 131072, id="llama 3"),
        pytest.param({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4}}, 32768, id="yarn"),
        pytest.param({"max_position_embeddings": 100, "rope_scaling": {"type": "dynamic", "factor": 4}}, 100, id="by length"),
        pytest.param(
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]},
            },
            4096,
            id="phi 3",
        ),
        pytest.param(
            {"model_type": "gemma3_text", "max_position_embeddings": 1000, "rope_scaling": {"rope_type": "linear", "factor": 8}},
            1000,
            id="gemma 3 is scaled already",
        ),
        pytest.param(
            {"max_position_embeddings": 100, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}}},
            200,
            id="by kind of layer",
        ),
        pytest.param({"text_config": {"max_position_embeddings": 300}, "vision_config": {}}, 300, id="inside a model for images"),
        pytest.param({"max_position_embeddings": 100, "sliding_window": 10}, 100, id="a window does not limit"),
        pytest.param({}, None, id="nothing said"),
        pytest.param({"max_position_embeddings": "many"}, None, id="not a number"),
        pytest.param({"max_position_embeddings": None, "rope_scaling": 3, "text_config": []}, None, id="nonsense"),
    ],
)
def test_a_model_reads_as_many_tokens_as_vllm_derives(config: Json, want: int | None):
    limit = limit_of(config)
    assert (limit.tokens if limit else None) == want


def test_a_window_that_is_disabled_limits():
    config = {"max_position_embeddings": 100, "sliding_window": 10}
    limit = limit_of(config, {"disable-sliding-window": "true"})
    assert limit is not None
    assert limit.tokens == 10


@pytest.mark.parametrize(
    ("positions", "prompts", "answers", "want"),
    [
        (None, None, None, (1024, 1024)),
        (131072, None, None, (1024, 1024)),
        (2048, None, None, (1024, 1024)),
        (1024, None, None, (512, 512)),
        (1500, None, None, (750, 750)),
        (513, None, None, (257, 256)),
        (1024, None, 256, (768, 256)),
        (4096, None, 3500, (596, 3500)),
        (1024, 1000, None, (1000, 24)),
        (4096, 100, None, (100, 1024)),
        (64, 128, 128, (128, 128)),
    ],
)
def test_lengths_that_are_left_open_shrink_to_what_the_model_reads(
    positions: int | None, prompts: int | None, answers: int | None, want: tuple[int, int]
):
    run = run_with(data={"maxPromptTokens": prompts} if prompts else {}, rollout={"maxTokens": answers} if answers else {})
    spec = fitted(run, {"max_position_embeddings": positions} if positions else None).spec
    assert (spec.max_prompt_tokens, spec.max_tokens) == want
    assert (spec.data.max_prompt_tokens, spec.rollout.max_tokens) == want


def test_what_shrank_is_said_once_and_only_then():
    open_run = run_with()
    short, long = (fitted(open_run, {"max_position_embeddings": positions}) for positions in (512, 4096))
    assert lengths_that_shrank(open_run, short) == (
        "the model reads 512 tokens: data.maxPromptTokens is 256 and rollout.maxTokens 256"
    )
    assert lengths_that_shrank(open_run, long) == ""
    assert lengths_that_shrank(short, short) == ""


@given(positions=st.integers(1, 5000), prompts=st.none() | st.integers(1, 5000), answers=st.none() | st.integers(1, 5000))
def test_a_fitted_run_fits_or_its_problem_names_both_fields(positions: int, prompts: int | None, answers: int | None):
    blocks: Json = {"data": {"maxPromptTokens": prompts} if prompts else {}, "rollout": {"maxTokens": answers} if answers else {}}
    config = {"max_position_embeddings": positions}
    spec = fitted(run_with(**blocks), config).spec
    said = problems(config, **blocks)

    assert (prompts or spec.max_prompt_tokens, answers or spec.max_tokens) == (spec.max_prompt_tokens, spec.max_tokens)
    assert bool(said) == (spec.max_prompt_tokens + spec.max_tokens > positions)
    if prompts is None and answers is None and positions > 1:
        assert not said
    assert all(
        "spec.data.maxPromptTokens" in each and "spec.rollout.maxTokens" in each and str(positions) in each for each in said
    )


def test_lengths_beyond_the_models_positions_are_one_sentence():
    assert problems({"max_position_embeddings": 512}, data={"maxPromptTokens": 1024}, rollout={"maxTokens": 256}) == [
        "spec.data.maxPromptTokens: 1024 and spec.rollout.maxTokens 256 make 1280 tokens, but the model reads 512 tokens "
        "(max_position_embeddings in its config.json): lower one of the two"
    ]


def test_the_users_own_length_for_vllm_counts_too():
    short = {"engineArgs": {"max-model-len": "1k"}}
    assert fitted(run_with(rollout=short), LLAMA).spec.max_prompt_tokens == 500
    assert problems(LLAMA, rollout=short | {"maxTokens": 1000}, data={"maxPromptTokens": 1})[0].endswith(
        "but the model reads 1000 tokens (spec.rollout.engineArgs.max-model-len): lower one of the two"
    )
    assert problems(LLAMA, rollout={"engineArgs": {"max-model-len": 8192}}) == [
        "spec.rollout.engineArgs.max-model-len: 8192 is more than the model's 4096 tokens (max_position_embeddings in its "
        "config.json): lower it"
    ]
    assert problems(LLAMA, rollout={"engineArgs": {"max-model-len": "auto"}}) == []
    assert problems(LLAMA, rollout={"engineArgs": {"max-model-len": -1}}) == []


def test_who_lets_vllm_read_beyond_the_positions_is_let():
    long: Json = {"data": {"maxPromptTokens": 9000}}
    container = {"name": "vllm", "env": [{"name": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "value": "1"}]}
    assert problems(LLAMA, **long)
    assert problems(LLAMA, **long, rollout={"template": {"spec": {"containers": [container]}}}) == []
    assert problems_with_model(run_with(**long), LLAMA, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}) == []


@pytest.mark.parametrize(
    ("change", "rollout", "want"),
    [
        pytest.param({}, {"tensorParallelSize": 1}, "", id="one"),
        pytest.param({}, {"tensorParallelSize": 4}, "", id="even"),
        pytest.param({}, {"tensorParallelSize": 5}, "spec.rollout.tensorParallelSize: 5 .*12 attention heads", id="heads"),
        pytest.param({}, {"tensorParallelSize": 6}, "4 key-value heads", id="key-value heads"),
        pytest.param({"num_key_value_heads": 2}, {"tensorParallelSize": 4}, "", id="key-value heads are repeated"),
        pytest.param({"num_key_value_heads": 12}, {"tensorParallelSize": 3}, "vocabulary of 32000 tokens", id="vocabulary"),
        pytest.param({}, {"engineArgs": {"pipeline-parallel-size": 7}}, "pipeline-parallel-size: 7 .* 6 layers", id="pipeline"),
        pytest.param({}, {"engineArgs": {"pipeline-parallel-size": "6"}}, "", id="a layer each"),
    ],
)
def test_arguments_that_the_model_contradicts_are_named(change: Json, rollout: Json, want: str):
    said = problems(LLAMA | change, rollout=rollout)
    assert [bool(re.search(want, each)) for each in said] == ([True] if want else []), said


@pytest.mark.parametrize(
    ("config", "size", "is_right"),
    [
        ({"model_type": "falcon", "num_attention_heads": 64, "multi_query": True}, 64, True),
        ({"model_type": "falcon", "num_attention_heads": 71, "multi_query": True}, 2, False),
        ({"model_type": "falcon", "n_head": 8, "num_kv_heads": 8, "new_decoder_architecture": True}, 4, True),
        ({"model_type": "gpt2", "n_head": 12}, 8, False),
        ({"model_type": "mpt", "n_heads": 32}, 8, True),
        ({"text_config": {"num_attention_heads": 8, "num_key_value_heads": 4}}, 8, True),
        ({"text_config": {"num_attention_heads": 8}}, 3, False),
        ({}, 7, True),
    ],
)
def test_heads_are_found_by_every_familys_name(config: Json, size: int, is_right: bool):
    assert (problems(config, rollout={"tensorParallelSize": size, "maxTokens": 8}) == []) is is_right


def test_dtype_of_the_model():
    for kind in ("gemma2", "gemma3", "gemma3_text", "glm4"):
        assert problems(LLAMA | {"model_type": kind}, model={"source": "m", "dtype": "float16"}) == [
            f"spec.model.dtype: vLLM does not serve {kind} in float16, which is too narrow for it: choose bfloat16 or float32"
        ]
    assert problems(LLAMA | {"model_type": "gemma"}, model={"source": "m", "dtype": "float16"}) == []


def test_a_quantized_model_is_refused_wherever_it_says_so():
    for config in ({"quantization_config": {"quant_method": "gptq"}}, {"text_config": {"compression_config": {}}}):
        (said,) = problems(LLAMA | config)
        assert said.startswith("spec.model.source: the model is quantized")


def test_a_model_that_vllm_does_not_serve_is_named_with_its_architecture():
    config = LLAMA | {"architectures": ["MPTForCausalLM"]}
    (said,) = problems(config)
    assert said.startswith("spec.model.source: vLLM does not serve MPTForCausalLM")
    assert problems(config, rollout={"image": "mine:1"}) == []
    assert problems(LLAMA | {"architectures": ["FalconForCausalLM"]}) == []


def test_scorers_are_checked_by_their_own_fields():
    assert problems_with_scorer(Scorer(), LLAMA) == []
    scorer = Scorer(tensor_parallel_size=5, dtype="float16", engine_args={"max-model-len": 5000})
    paths = [problem.path for problem in problems_with_scorer(scorer, LLAMA | {"model_type": "gemma2"})]
    assert paths == ["spec.scorer.dtype", "spec.scorer.tensorParallelSize", "spec.scorer.engineArgs.max-model-len"]


def test_every_problem_is_told_at_once():
    said = problems(
        LLAMA | {"model_type": "gemma2"},
        data={"maxPromptTokens": 9000},
        rollout={"tensorParallelSize": 5},
        model={"source": "m", "dtype": "float16"},
    )
    assert len(said) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["max_position_embeddings", "n_positions", "model_max_length", "rope_scaling", "rope_parameters", "text_config", "model_type",
     "num_attention_heads", "num_key_value_heads", "vocab_size", "sliding_window", "quantization_config", "num_hidden_layers"]
)  # fmt: skip


@given(config=st.dictionaries(FIELDS, JSON | st.dictionaries(FIELDS | st.sampled_from(["type", "factor", "rope_type"]), JSON)))
def test_no_config_is_a_traceback(config: Json):
    run = run_with(
        rollout={"tensorParallelSize": 3, "engineArgs": {"disable-sliding-window": "true", "pipeline-parallel-size": 9}}
    )
    problems_with_model(run, config)
    spec = fitted(run, config).spec
    assert spec.max_tokens >= 1
    assert spec.max_prompt_tokens >= 1


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null", "3"])
def test_what_is_not_a_json_object_is_no_config(text: str):
    assert parse_config(text) is None


def test_vllm_reads_a_length_that_is_left_open_from_a_file():
    open_run, said = run_with(), run_with(data={"maxPromptTokens": 100}, rollout={"maxTokens": 28})
    for run, want in ((open_run, ("--config", "/x.yaml")), (said, ("--max-model-len", "128"))):
        command = vllm(run, accelerator="cpu", dtype="float32", lengths_file="/x.yaml").command
        assert command[command.index(want[0]) + 1] == want[1]
        assert ("--config" in command) != ("--max-model-len" in command)


def test_a_stored_run_with_lengths_keeps_them():
    assert parse_run(run_with(data={"maxPromptTokens": 1024}).to_document()).spec.data.max_prompt_tokens == 1024
