"""LoRA: adapters beside the linear layers of a model that itself stays unchanged. Source: arXiv 2106.09685.

Layers, initialization and file format are those of the library peft, so that peft and vLLM can load what is published.
"""

# R = rank; A is [R, inputs], B is [outputs, R]

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from spinrun_api.spec import Lora, Model
from spinrun_protocol.ledger import ADAPTER_WEIGHTS
from spinrun_worker.errors import ConfigurationError

FILE_DTYPE = torch.float32
"""Dtype of published adapters: that of the trained weights, so that a version equals the policy bit for bit."""

_FILE_PREFIX = "base_model.model."
_ADAPTER = "default"


def add_adapters(model: PreTrainedModel, layers: Sequence[nn.Module], lora: Lora, *, source: Model, seed: int) -> LoraConfig:
    """Freeze a model and put adapters beside linear layers inside its decoder layers.

    B starts at zero, so that the model computes what it did before; A is random, but the same on every rank and in every attempt.

    Args:
        model: The model; changed in place.
        layers: Its decoder layers.
        lora: The spec's block.
        source: Where the model comes from, for the adapter's configuration.
        seed: Seed of A.

    Returns:
        peft's description of the adapters.

    Raises:
        ConfigurationError: There is no linear layer, a target is not the name of one, or a layer outside the decoder layers has
            the same name.
    """
    config = LoraConfig(
        base_model_name_or_path=source.source,
        revision=source.revision,
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=_targets(model, layers, lora.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    inside = {id(module) for layer in layers for module in layer.modules()}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if id(module) not in inside:
                # A vision encoder may use the same names; vLLM gives it no adapters.
                raise ConfigurationError(
                    f"trainer.lora: {name} has the name of a layer inside the decoder layers of {type(model).__name__}, but is "
                    "outside of them: remove the block, or use another model"
                )
            # An adapter computes in the dtype of its layer's input, whatever the dtype of its own weights.
            module.cast_input_dtype_enabled = False
    return config


def _targets(model: nn.Module, layers: Sequence[nn.Module], asked: Sequence[str] | None) -> list[str]:
    """The names of linear layers in decoder layers that get an adapter: all, or those with the requested endings."""
    linears = {name for layer in layers for name, module in layer.named_modules() if type(module) is nn.Linear}
    if not linears:
        raise ConfigurationError(f"trainer.lora: the layers of {type(model).__name__} have no torch.nn.Linear: remove the block")
    if asked is None:
        return sorted(linears)
    for target in asked:
        if not _ending(linears, target):
            raise ConfigurationError(
                f"trainer.lora.targets: no linear layer of {type(model).__name__} has a name that ends in {target}; "
                f"the names are {', '.join(sorted(linears))}"
            )
    return sorted({name for target in asked for name in _ending(linears, target)})


def _ending(names: Collection[str], end: str) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{end}")]


def file_name(parameter: str) -> str:
    """The name of an adapter's parameter in its file, by its name in the model."""
    return _FILE_PREFIX + parameter.replace(f".{_ADAPTER}.", ".")


def config_file(config: LoraConfig) -> bytes:
    """Content of adapter_config.json; the same adapters give the same bytes."""
    document = {
        name: sorted(cast(set[str], value)) if isinstance(value, set) else value
        for name, value in cast(dict[str, Any], config.to_dict()).items()
    }
    return json.dumps(document | {"inference_mode": True}, indent=2, sort_keys=True).encode() + b"\n"


def digest_of_base(model: nn.Module) -> str:
    """Identity of all weights that are not trained: xxh3-128, as 32 hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            hasher.update(name.encode())
            hasher.update(parameter.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with a published adapter merged into its weights: W + (alpha / R) B A, in the dtype of W.

    Raises:
        OSError: The folder holds no safetensors, in place of which peft would look for a pickle, and on the Hub.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_WEIGHTS}")
    return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(folder)).merge_and_unload())
