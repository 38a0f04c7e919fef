import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.cohere import CohereConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_oss import GptOssConfig
from transformers.models.granite import GraniteConfig
from transformers.models.lfm2 import Lfm2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mamba import MambaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.mixtral import MixtralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from spinrun_api.spec import Method, Model, Trainer
from spinrun_protocol.exit_codes import ExitCode
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model import policy as policy_module
from spinrun_worker.trainer.model.attention import UnsupportedModelError
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.packing import pack
from spinrun_worker.trainer.model.policy import ModelError, Policy, load_policy, shard_policy
from spinrun_worker.trainer.ranks.termination import outcome
from support.models import random_pairs, tiny_llama
from unit.trainer.model.test_learner import OneRank

VOCABULARY = 96
# Weights large enough that what a family does to scores and logits shows.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FEW: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
HALF_ROTARY: dict[str, Any] = {"partial_rotary_factor": 0.5}
QUARTER_ROTARY: dict[str, Any] = {"rotary_pct": 0.25}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2 with sliding layers": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mistral with a window": lambda: MistralConfig(**SIZES, sliding_window=6),
    "gemma2": lambda: Gemma2Config(
        **SIZES, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=1.5, final_logit_softcapping=2.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, sliding_window=6, query_pre_attn_scalar=8, layer_types=ALTERNATING),
    "granite": lambda: GraniteConfig(**SIZES, logits_scaling=3.0, attention_multiplier=0.2, residual_multiplier=0.5),
    "cohere": lambda: CohereConfig(**SIZES, logit_scale=0.25),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": lambda: hf.OPTConfig(**FEW, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "phi, partly rotary": lambda: hf.PhiConfig(**FEW, intermediate_size=48, **HALF_ROTARY, qk_layernorm=True),
    "olmo2": lambda: hf.Olmo2Config(**{name: size for name, size in SIZES.items() if name != "head_dim"}),
    "smollm3": lambda: hf.SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "pythia": lambda: hf.GPTNeoXConfig(**FEW, intermediate_size=48, **QUARTER_ROTARY, attention_dropout=0.4, hidden_dropout=0.4),
    "pythia, tied, one after the other": lambda: hf.GPTNeoXConfig(
        **FEW, intermediate_size=48, use_parallel_residual=False, tie_word_embeddings=True
    ),
    "falcon-rw": lambda: hf.FalconConfig(**FEW, alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "falcon-7b": lambda: hf.FalconConfig(**FEW, multi_query=True, attention_dropout=0.4, hidden_dropout=0.4),
    "falcon-40b": lambda: hf.FalconConfig(**FEW, new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False),
    "stablelm": lambda: hf.StableLmConfig(**SIZES, use_qkv_bias=True, **HALF_ROTARY, attention_dropout=0.4),
    "stablelm-2": lambda: hf.StableLmConfig(**SIZES, qk_layernorm=True, use_parallel_residual=True, tie_word_embeddings=True),
    "nemotron": lambda: hf.NemotronConfig(**SIZES, **HALF_ROTARY, attention_bias=True, mlp_bias=True),
    "bloom": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
    "mpt": lambda: hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "gpt-j": lambda: hf.GPTJConfig(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, initializer_range=0.3
    ),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        initializer_range=0.3,
    ),
    "gemma3 with images": lambda: hf.Gemma3Config(
        text_config={**SIZES, "sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": ALTERNATING},
        vision_config=VISION,
        mm_tokens_per_image=4,
    ),
    "mistral3 with images": lambda: hf.Mistral3Config(
        text_config=MistralConfig(**SIZES), vision_config=hf.PixtralVisionConfig(**VISION)
    ),
    "qwen2-vl": lambda: hf.Qwen2VLConfig(
        text_config={**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    ),
}
PADDED = {"falcon-rw", "falcon-7b", "falcon-40b", "stablelm", "stablelm-2", "nemotron", "bloom", "mpt", "gpt-j", "gpt-neo"}
"""Families whose attention cannot be told how pairs are packed."""


def saved(config: PretrainedConfig, folder: Path) -> Model:
    kind = AutoModelForCausalLM if type(config) in hf.MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind.from_config(config).save_pretrained(folder)
    return Model(source=str(folder))


def plainly_loaded(source: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The model as transformers alone loads it."""
    config = AutoConfig.from_pretrained(source)
    kind = AutoModelForCausalLM if type(config) in hf.MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    # Falcon's eager attention adds ALiBi's biases twice; its default one, like vLLM, once.
    implementation = None if config.model_type == "falcon" else "eager"
    return kind.from_pretrained(source, dtype=dtype, attn_implementation=implementation).eval()


def packed_logprobs(policy: Policy, pairs: list[Pair]) -> Tensor:
    return policy(pack(pairs, range(len(pairs))))


def plain_logprobs(model: PreTrainedModel, pairs: list[Pair]) -> Tensor:
    """[2P] by transformers alone: each sequence on its own, all logits."""

    def logprob(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(completion)), list(completion)].sum()

    return torch.stack([logprob(pair.prompt, completion) for pair in pairs for completion in (pair.chosen, pair.rejected)])


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_equal_the_models_own(family: str, tmp_path: Path):
    model = saved(FAMILIES[family](), tmp_path)
    pairs = [*random_pairs(4, vocabulary_size=VOCABULARY), Pair("no rejected", (3, 4), (5, 6), (), 1.0, 0.0)]
    policy = load_policy(model, master_dtype=torch.float64)
    plain = plainly_loaded(model.source)

    got, want = packed_logprobs(policy, pairs), plain_logprobs(plain, pairs)
    got.square().sum().backward()
    want.square().sum().backward()

    assert policy.packs is (family not in PADDED)
    # transformers rounds rotary angles and normalisations to fp32 even here.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    trained = {name: parameter for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert trained.keys() == gradients.keys(), "what is for images alone is not trained"
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in trained.items():
        # Without rotary positions a bias of keys changes nothing: its gradient is rounding alone.
        is_nothing = family == "opt" and name.endswith("k_proj.bias")
        scale = 1e-2 * largest if is_nothing else gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_version_is_the_model_that_transformers_wrote(family: str, tmp_path: Path):
    model = saved(FAMILIES[family](), tmp_path / "model")
    on_disk = load_file(tmp_path / "model" / "model.safetensors")
    state = load_policy(model).state()

    assert state.keys() == on_disk.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in on_disk.items())

    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "config.json").write_bytes((tmp_path / "model" / "config.json").read_bytes())
    save_file(
        {name: tensor + 0.01 for name, tensor in state.items()}, tmp_path / "version" / "model.safetensors", {"format": "pt"}
    )
    again = plainly_loaded(str(tmp_path / "version"), torch.float32).state_dict()
    first = plainly_loaded(model.source, torch.float32).state_dict()
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], tensor + 0.01) for name, tensor in first.items() if name in state)


def test_a_model_stored_without_its_head_is_published_with_its_whole_names(tmp_path: Path):
    """As the first GPT-2's files are: h.0.attn.c_attn.weight, without transformer. in front."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.AutoModel.from_config(FAMILIES["gpt2"]()).save_pretrained(tmp_path / "base")
    saved(FAMILIES["gpt2"](), tmp_path / "whole")
    stored = load_file(tmp_path / "base" / "model.safetensors")

    state = load_policy(Model(source=str(tmp_path / "base"))).state()

    assert state.keys() == load_file(tmp_path / "whole" / "model.safetensors").keys()
    assert all(torch.equal(state[f"transformer.{name}"], tensor) for name, tensor in stored.items())


def test_fp32_log_probs_equal_the_models_own_to_five_digits(llama: Path):
    pairs = random_pairs(6)
    policy = load_policy(Model(source=str(llama)))
    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()

    torch.testing.assert_close(packed_logprobs(policy, pairs), plain_logprobs(plain, pairs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "falcon-rw", "stablelm", "gpt-j"])
def test_a_pair_has_the_same_log_probs_in_any_company(family: str, tmp_path: Path):
    policy = load_policy(saved(FAMILIES[family](), tmp_path), master_dtype=torch.float64)
    pairs = random_pairs(5, vocabulary_size=VOCABULARY)

    together = packed_logprobs(policy, pairs).view(-1, 2)
    alone = torch.stack([packed_logprobs(policy, [pair]) for pair in pairs])

    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_state_names_are_those_of_the_model_on_disk(tmp_path: Path):
    for tied in (True, False):
        folder = tiny_llama(tmp_path / str(tied), tie_word_embeddings=tied)
        state = load_policy(Model(source=str(folder))).state()

        on_disk = load_file(folder / "model.safetensors")
        assert set(state) == set(on_disk)
        assert ("lm_head.weight" in state) is not tied
        assert all(torch.equal(state[name], tensor) for name, tensor in on_disk.items())


def test_weights_do_not_depend_on_the_file_they_were_loaded_from(tmp_path: Path):
    folder = tiny_llama(tmp_path)
    policy = load_policy(Model(source=str(folder)))

    (folder / "model.safetensors").write_bytes(b"")

    assert all(tensor.isfinite().all() for tensor in policy.state().values())


def test_bfloat16_weights_are_loaded_as_fp32_masters(tmp_path: Path):
    folder = tiny_llama(tmp_path, dtype=torch.bfloat16)

    assert {tensor.dtype for tensor in load_policy(Model(source=str(folder))).state().values()} == {torch.float32}


def test_dropout_is_off(tmp_path: Path):
    policy = load_policy(saved(LlamaConfig(**SIZES, attention_dropout=0.5), tmp_path))
    pairs = random_pairs(2, vocabulary_size=VOCABULARY)

    assert torch.equal(packed_logprobs(policy, pairs), packed_logprobs(policy, pairs))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        pytest.param(
            lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
            "config.layer_types of lfm2 has conv",
            id="convolutions",
        ),
        pytest.param(
            lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8, pad_token_id=0),
            "config.layer_types of mamba has linear_attention",
            id="state space",
        ),
        pytest.param(
            lambda: hf.Llama4TextConfig(**SIZES, num_local_experts=2, moe_layers=[], intermediate_size_mlp=48),
            "config.layer_types of llama4_text has chunked_attention",
            id="chunked attention",
        ),
        pytest.param(
            lambda: hf.BertConfig(**FEW, intermediate_size=48),
            "BertLMHeadModel gives different log-probs on padded sequences than on plain .* tokens see those after them",
            id="not causal",
        ),
        pytest.param(
            lambda: hf.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
            "RwkvForCausalLM changes its weights as it computes",
            id="changes its weights",
        ),
        pytest.param(
            lambda: GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=8),
            "GptOssForCausalLM cannot run on packed pairs: GptOssAttention uses attention sinks",
            id="attention sinks",
        ),
        pytest.param(
            lambda: MixtralConfig(**SIZES, num_local_experts=2),
            "MixtralForCausalLM stores its weights in a different form",
            id="mixture of experts",
        ),
    ],
)
def test_models_that_would_be_trained_wrongly_are_refused_with_the_reason(config, match: str, tmp_path: Path):
    with pytest.raises(UnsupportedModelError, match=match) as raised:
        load_policy(saved(config(), tmp_path))
    assert outcome(raised.value) == (ExitCode.INVALID_CONFIGURATION, "InvalidConfiguration"), "and never tried again"


def test_what_sees_images_is_published_as_it_came(tmp_path: Path):
    model = saved(FAMILIES["gemma3 with images"](), tmp_path)
    policy = shard_policy(load_policy(model), mesh=OneRank(), compute_dtype=torch.bfloat16)
    trainer = Trainer()
    learner = Learner(policy, make_optimizer(policy.parameters(), trainer), method=Method(), trainer=trainer)

    learner.step(random_pairs(4, vocabulary_size=VOCABULARY), learning_rate=1e-2)

    on_disk, state = load_file(tmp_path / "model.safetensors"), policy.state()
    same = {name for name, tensor in on_disk.items() if torch.equal(state[name], tensor)}
    assert same == {name for name in on_disk if "vision" in name or "projector" in name}


def test_an_unknown_change_of_logits_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy_module, "logit_transform", lambda _: lambda logits: logits)

    with pytest.raises(UnsupportedModelError, match="GraniteForCausalLM gives different log-probs on padded sequences"):
        load_policy(saved(FAMILIES["granite"](), tmp_path))


def test_windows_that_do_not_reach_the_attention_are_noticed(tmp_path: Path):
    folder = tiny_llama(tmp_path)
    # Llama's attention knows no window, whatever its configuration says.
    edit_config(folder, layer_types=["full_attention", "sliding_attention"], sliding_window=4)

    with pytest.raises(UnsupportedModelError, match=r"config\.sliding_window"):
        load_policy(Model(source=str(folder)))


def test_positions_that_depend_on_the_longest_sequence_are_refused_where_they_begin_to(tmp_path: Path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    sizes: dict[str, Any] = SIZES | {"max_position_embeddings": 16, "rope_parameters": rope}
    policy = load_policy(saved(LlamaConfig(**sizes), tmp_path))
    fits = Pair("fits", (3,) * 10, (4,) * 6, (5,) * 6, 1.0, 0.0)
    too_long = Pair("too long", (3,) * 10, (4,) * 2, (5,) * 7, 1.0, 0.0)

    assert packed_logprobs(policy, [fits]).isfinite().all()
    with pytest.raises(UnsupportedModelError, match="a sequence of 17 tokens is longer than 16"):
        packed_logprobs(policy, [fits, too_long])


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "constants"),
    [
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        ("gpt-j", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("gpt-neo", ["transformer.h.1.attn.attention.bias", "transformer.h.1.attn.attention.masked_bias"]),
        ("pythia", ["gpt_neox.layers.0.attention.masked_bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_constants_that_older_files_hold_do_not_count_as_weights(family: str, constants: list[str], tmp_path: Path):
    model = saved(FAMILIES[family](), tmp_path)
    before = load_policy(model).state().keys()
    edit_weights(tmp_path, lambda tensors: tensors.update({name: torch.ones(1) for name in constants}))

    assert load_policy(model).state().keys() == before


NORM = "model.layers.1.input_layernorm.weight"


def remove_a_weight(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(NORM))


def add_a_weight(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update(x=torch.ones(1)))


def reshape_a_weight(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({NORM: torch.ones(7)}))


def quantize(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        pytest.param(remove_a_weight, "1 missing keys: " + NORM, id="missing"),
        pytest.param(add_a_weight, "1 unexpected keys: x", id="unexpected"),
        pytest.param(reshape_a_weight, "1 mismatched keys: .*" + NORM, id="shape"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "cannot be loaded", id="torn"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded", id="no weights"),
        pytest.param(
            lambda folder: edit_config(folder, model_type="t5"), "transformers has none for model_type t5", id="not causal"
        ),
        pytest.param(lambda folder: edit_config(folder, model_type="nonsense"), "cannot be loaded", id="unknown"),
        pytest.param(quantize, "model.source", id="quantized"),
    ],
)
def test_a_model_that_does_not_load_whole_is_not_trained(damage: Callable[[Path], object], match: str, tmp_path: Path):
    folder = tiny_llama(tmp_path)
    damage(folder)

    with pytest.raises(ModelError, match=match):
        load_policy(Model(source=str(folder)))


def test_a_model_that_is_not_there_is_an_error_of_the_configuration(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"model.source '.*nowhere' at revision 'v2' cannot be loaded"):
        load_policy(Model(source=str(tmp_path / "nowhere"), revision="v2"))


def test_code_of_the_model_runs_only_when_it_is_trusted(tmp_path: Path):
    folder = tiny_llama(tmp_path)
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})

    with pytest.raises(ModelError, match="trust_remote_code"):
        load_policy(Model(source=str(folder)))
    assert type(load_policy(Model(source=str(folder), trust_remote_code=True)).model).__name__ == "OwnModel"
