"""The shape of a model, by its config.json."""

import random
from contextlib import suppress
from typing import Any

import pytest

from spinrun_cli.estimate.shape import KNOWN, LARGEST, MOST_LAYERS, Shape, ShapeError, shape_of

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 10,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TINY = Shape(layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocabulary=10, tied=False)


def test_a_config_gives_its_shape():
    assert shape_of(LLAMA) == TINY


def test_parts_add_up_by_hand():
    # Query 4 × 4, key and value 4 × 2 each, output 4 × 4, gate, up and down 4 × 8 each; two norms of 4.
    assert TINY.layer == 16 + 8 + 8 + 16 + 3 * 32 + 8
    assert TINY.body == 2 * 152 + 4
    assert TINY.parameters == 308 + 2 * 40
    assert TINY.key_value_numbers == 2 * 2 * 2
    # Of rank 3, beside each of the seven matrices: inputs and outputs of 8, 6, 6, 8, 12, 12, 12.
    assert TINY.adapters(3) == 2 * 3 * 64


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
    ],
)
def test_known_models_have_as_many_weights_as_their_files(name: str, parameters: int):
    assert KNOWN[name].parameters == parameters


def test_the_language_part_of_a_model_for_images_counts_alone():
    config = {"model_type": "qwen2_5_vl", "text_config": LLAMA, "vision_config": {"hidden_size": 99}}

    shape = shape_of(config)

    assert (shape.parameters, shape.sees_images) == (TINY.parameters, True)


def test_what_a_file_leaves_out_is_what_its_family_has():
    gpt2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 4, "n_head": 2, "vocab_size": 10}

    shape = shape_of(gpt2)

    assert (shape.intermediate, shape.gated, shape.tied, shape.biased, shape.kv_heads) == (16, False, True, True, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "wide"}, "no hidden_size"),
        ({"hidden_size": -4}, "hidden_size: -4 is not from 1"),
        ({"hidden_size": 1e300}, "hidden_size: it is not from 1"),
        ({"hidden_size": float("nan")}, "no hidden_size"),
        ({"hidden_size": 1}, "cannot share a hidden size"),
        ({"hidden_size": [4]}, "no hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is not from 1 to 10000"),
        ({"num_key_value_heads": 64}, "num_key_value_heads: 64 is not from 1 to 2"),
        ({"vocab_size": {}}, "no vocab_size"),
        ({"num_experts": 64}, "num_experts 64: mixtures of experts"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types has linear_attention"),
    ],
)
def test_a_file_without_a_shape_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ShapeError, match=message):
        shape_of(LLAMA | changes)


def test_any_json_gives_a_shape_or_is_refused():
    values = [None, True, 0, -1, 3, 2**70, 0.5, -1e300, "", "4k", "1e9", "x" * 900, [], [1], {}, {"hidden_size": -1}]
    fields = [*LLAMA, "head_dim", "text_config", "layer_types", "num_experts", "attention_bias", "torch_dtype", "n_inner"]
    draw = random.Random(0)
    for _ in range(3000):
        changes = {field: draw.choice(values) for field in draw.sample(fields, 2)}
        with suppress(ShapeError):
            assert 0 < shape_of(LLAMA | changes).parameters < MOST_LAYERS * LARGEST**2 * 8, changes


def test_a_file_nested_without_end_is_refused():
    config: dict[str, Any] = {}
    for _ in range(50_000):
        config = {"text_config": config}

    with pytest.raises(ShapeError):
        shape_of(config)
