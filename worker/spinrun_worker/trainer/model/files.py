"""What is known of a model before its weights are read: whether its files are those of one whole model, and without code."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from spinrun_api.spec import Model
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    CONVERT,
    GENERATION_CONFIG,
    INDEX,
    check_config,
    check_folder,
    check_index,
    find_file,
    read_object,
)
from spinrun_worker.reading import reading

# transformers would ask a service on the Hub for a conversion of a model without safetensors, and load what that proposes.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


class ModelError(ConfigurationError):
    """A model that cannot be loaded. The message says what is wrong with it and what to do."""


def place_of(model: Model) -> str:
    """The model's source, at the start of a sentence."""
    return f"model.source {model.source!r}" + (f" at revision {model.revision!r}" if model.revision else "")


def loading(model: Model) -> AbstractContextManager[None]:
    """Whatever is raised over the model's files in this block, by transformers or by us, is a ModelError or, if it may pass, a
    RunError."""
    return reading(
        f"{place_of(model)} cannot be loaded as a causal language model",
        remedy="name a Hub id or the absolute path of a Hugging Face folder with config.json and safetensors; a gated model also "
        f"needs a token, and of a model in another format {CONVERT}",
        error_class=ModelError,
    )


def check_files(model: Model) -> None:
    """Look for what transformers or vLLM would not load, or would load from elsewhere.

    Raises:
        ModelError: Names the file and the remedy.
        RunError: The files cannot be reached now.
    """
    source, field = model.source, f"{place_of(model)} cannot be loaded"
    with loading(model):
        try:
            if Path(source).is_absolute():
                check_folder(Path(source), field)
            if path := find_file(source, model.revision, ADAPTER_CONFIG):
                raise ModelError(
                    f"{field}: it holds an adapter ({path.name}), beside which transformers would load other weights: merge it "
                    "into its base (merge_and_unload and save_pretrained of peft's model), and name the result"
                )
            _check_config(model, field)
            if path := find_file(source, model.revision, INDEX):
                check_index(read_object(path, field), str(path), field)
            if path := find_file(source, model.revision, GENERATION_CONFIG):
                _check_generation_config(path, read_object(path, field), field)
        except ModelError:
            raise
        except ConfigurationError as error:
            raise ModelError(str(error)) from error


def _check_config(model: Model, field: str) -> None:
    path = find_file(model.source, model.revision, CONFIG)
    if path is None and Path(model.source).is_absolute():
        raise ModelError(f"{field}: it has no {CONFIG}: name a Hugging Face folder, or a Hub id")
    config = read_object(path, field) if path else {}
    check_config(config, str(path), field)
    if config.get("quantization_config") is not None:
        raise ModelError(f"{field}: it is quantized ({path}: quantization_config): name the model that it was made from")
    with reading(f"{field}: {path or CONFIG}", remedy="name the model's own architecture and sizes there, or restore the file"):
        revision, trust = model.revision or "main", model.trust_remote_code
        AutoConfig.from_pretrained(model.source, revision=revision, trust_remote_code=trust)


def _check_generation_config(path: Path, settings: Mapping[str, Any], field: str) -> None:
    """Nobody samples by it, so that it may say anything that vLLM, which takes the end tokens from it, can read."""
    ends = settings.get("eos_token_id")
    if not all(each is None or type(each) is int for each in (ends if isinstance(ends, list) else [ends])):
        raise ModelError(f"{field}: {path}: eos_token_id must be a token id or a list of them, got {ends!r}: correct it")
    with reading(f"{field}: {path}", remedy="correct the file, or remove it"):
        GenerationConfig.from_dict(dict(settings))
