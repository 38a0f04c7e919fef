"""Adapters: what is trained, what is computed, and what peft makes of the same adapters."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from spinrun_api.spec import Lora, Model
from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.trainer.model.flops import ModelFlops
from spinrun_worker.trainer.model.lora import add_adapters, config_file
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import Policy, load_merged, load_policy, shard_policy
from support.models import random_pairs, tiny_llama
from unit.trainer.model.test_learner import OneRank, learner
from unit.trainer.model.test_policy import FAMILIES, VOCABULARY, packed_logprobs, plain_logprobs, saved

LORA = Lora(rank=4, alpha=32)
# GPT-2 and Falcon have layers of their own, peft also adapts what OPT has around its layers, and of a model with images layers
# outside the language model have the same names.
WITH_LINEAR_LAYERS = [
    name for name in FAMILIES if not name.startswith(("gpt2", "falcon", "opt", "gemma3 with", "mistral3", "qwen2-vl"))
]


def adapted(model: Path, lora: Lora = LORA, **options: Any) -> Policy:
    return load_policy(Model(source=str(model)), lora=lora, **options)


def move(policy: Policy, seed: int = 1) -> None:
    """Give the adapters values of which every one has a say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def write(policy: Policy, folder: Path) -> Path:
    """A version, as it is published."""
    folder.mkdir()
    save_file({name: tensor.detach().contiguous() for name, tensor in policy.state().items()}, folder / ADAPTER_WEIGHTS)
    assert policy.adapters is not None
    (folder / ADAPTER_CONFIG).write_bytes(config_file(policy.adapters))
    return folder


def test_new_adapters_change_nothing(llama: Path):
    pairs = random_pairs(4)
    whole = load_policy(Model(source=str(llama)))

    assert torch.equal(packed_logprobs(adapted(llama), pairs), packed_logprobs(whole, pairs))


def test_every_rank_and_attempt_begins_with_the_same_adapters(llama: Path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = adapted(llama, seed=7).state()
    assert torch.equal(torch.get_rng_state(), before), "the run's own random numbers are as they were"
    torch.manual_seed(2)
    same, other = adapted(llama, seed=7).state(), adapted(llama, seed=8).state()

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) == ("lora_B" in name) for name in one)


@pytest.mark.parametrize("family", WITH_LINEAR_LAYERS)
def test_log_probs_and_gradients_are_those_of_peft(family: str, tmp_path: Path):
    model = saved(FAMILIES[family](), tmp_path / "model")
    pairs = random_pairs(4, vocabulary_size=VOCABULARY)
    policy = load_policy(model, master_dtype=torch.float64, lora=LORA)
    move(policy)
    plain = AutoModelForCausalLM.from_pretrained(model.source, dtype=torch.float64, attn_implementation="eager").eval()
    config = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(plain, config, autocast_adapter_dtype=False).eval()
    by_name = {name.replace(".default.", "."): parameter for name, parameter in theirs.named_parameters() if "lora" in name}
    assert by_name.keys() == policy.state().keys(), "peft's names, and the same layers"
    with torch.no_grad():
        for name, tensor in policy.state().items():
            by_name[name].copy_(tensor)

    got, want = packed_logprobs(policy, pairs), plain_logprobs(cast(PreTrainedModel, theirs), pairs)
    got.square().sum().backward()
    want.square().sum().backward()

    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    gradients = {name: parameter.grad for name, parameter in by_name.items() if parameter.grad is not None}
    for name, gradient in trained_gradients(policy).items():
        scale = gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


def trained_gradients(policy: Policy) -> dict[str, Tensor]:
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return {name: parameter.grad for name, parameter in zip(policy.state(), trained, strict=True) if parameter.grad is not None}


def test_a_step_changes_the_adapters_and_nothing_else(llama: Path):
    policy = adapted(llama)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    optimizer = make_optimizer(policy.parameters(), learner(policy).trainer)
    trained = learner(policy, optimizer=optimizer)
    for _ in range(2):
        trained.step(random_pairs(4), learning_rate=1e-2)

    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora" in name), name
    kept = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.ndim]
    assert sum(tensor.numel() for tensor in kept) == 2 * sum(tensor.numel() for tensor in policy.state().values())


def test_targets_are_the_ends_of_names(llama: Path):
    policy = adapted(llama, Lora(rank=2, targets=["q_proj", "mlp.down_proj"]))

    layers = {name.removeprefix("base_model.model.model.layers.").rpartition(".lora_")[0] for name in policy.state()}
    assert layers == {f"{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}


@pytest.mark.parametrize("target", ["proj", "layers", "lm_head", "self_attn"])
def test_a_target_that_is_no_linear_layer_of_the_decoder_is_refused(llama: Path, target: str):
    with pytest.raises(ConfigurationError, match=f"trainer.lora.targets: .* ends in {target}; the names are mlp.down_proj, "):
        adapted(llama, Lora(targets=["q_proj", target]))


def test_a_model_without_linear_layers_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"the layers of GPT2LMHeadModel have no torch\.nn\.Linear"):
        load_policy(saved(FAMILIES["gpt2"](), tmp_path), lora=LORA)


def test_a_layer_outside_the_decoder_gets_no_adapter(llama: Path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.tower = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    add_adapters(model, list(model.model.layers), Lora(targets=["q_proj"]), source=Model(source="m"), seed=0)
    assert type(model.tower["q_proj"]) is nn.Linear

    other = AutoModelForCausalLM.from_pretrained(llama)
    other.tower = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})
    with pytest.raises(ConfigurationError, match=r"tower\.self_attn\.q_proj has the name of a layer inside"):
        add_adapters(other, list(other.model.layers), Lora(targets=["q_proj"]), source=Model(source="m"), seed=0)


def test_the_file_of_the_adapters_is_the_same_whatever_the_order_of_sets(llama: Path):
    policy = adapted(llama, Lora(rank=4, alpha=8, targets=["up_proj", "q_proj"]))
    assert policy.adapters is not None
    document = json.loads(config_file(policy.adapters))

    assert document["target_modules"] == ["mlp.up_proj", "self_attn.q_proj"]
    assert (document["r"], document["lora_alpha"], document["peft_type"]) == (4, 8, "LORA")
    assert document["base_model_name_or_path"] == str(llama)


def test_an_adapter_that_is_no_safetensors_is_not_merged(llama: Path, tmp_path: Path):
    """In its place peft would unpickle adapter_model.bin, or look on the Hub."""
    folder = write(adapted(llama), tmp_path / "version")
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=ADAPTER_WEIGHTS):
        load_merged(Model(source=str(llama)), folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_gives_the_log_probs_of_its_adapters(tied: bool, tmp_path: Path):
    llama = tiny_llama(tmp_path / "model", tie_word_embeddings=tied)
    policy = adapted(llama)
    move(policy)
    merged = load_merged(Model(source=str(llama)), write(policy, tmp_path / "version"))
    pairs = random_pairs(4)

    torch.testing.assert_close(packed_logprobs(merged, pairs), packed_logprobs(policy, pairs), rtol=1e-5, atol=1e-4)
    assert merged.state().keys() == load_policy(Model(source=str(llama))).state().keys(), "a whole model, by its own names"


def test_a_base_in_bfloat16_takes_half_the_memory_and_is_never_converted(llama: Path):
    policy = shard_policy(adapted(llama), mesh=OneRank(), compute_dtype=torch.bfloat16)
    move(policy)
    converted: list[torch.Size] = []
    kept = torch.Tensor.to

    def note(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        result = kept(tensor, *arguments, **options)
        if isinstance(tensor, nn.Parameter) and result.dtype != tensor.dtype:
            converted.append(tensor.shape)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", note)
        packed_logprobs(policy, random_pairs(2))

    assert {parameter.dtype for parameter in policy.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    assert converted, "adapters are"
    assert all(4 in shape for shape in converted), "and only they"


def test_a_weight_that_is_not_trained_costs_two_thirds(llama: Path):
    pairs = random_pairs(2)
    whole, adapters = load_policy(Model(source=str(llama))), adapted(llama)
    tokens = sum(pair.num_tokens for pair in pairs)
    trained = sum(tensor.numel() for tensor in adapters.state().values())

    assert ModelFlops(adapters).of_step(pairs) == pytest.approx(ModelFlops(whole).of_step(pairs) * 4 / 6 + 6 * trained * tokens)
