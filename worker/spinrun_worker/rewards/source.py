"""Whether the run can serve a scoring model itself: looked up in the model's files, before anything waits for it.

vLLM mistakes many models for something else: it turns a language model into an embedding model, and scores texts by how
similar they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from spinrun_api.spec import ScoringModel
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.model_config import read_config
from spinrun_worker.model_files import check_folder, check_names, hub_names
from spinrun_worker.reading import reading

OVERRIDES = "hf-overrides"
"""The argument of vLLM with which users tell it to treat a model as another kind."""

# What transformers assumes of a classifier that does not say how many classes it has.
_DEFAULT_CLASSES = 2


def check_source(block: str, model: ScoringModel, engine_args: Mapping[str, str | int]) -> None:
    """Check the model's configuration and the form of its weights, where they can be read: an image of vLLM may hold models that
    no other container sees.

    Args:
        block: Path of the model's block in the spec.
        model: The model to check.
        engine_args: Arguments of the run's own scorers, one of which may have vLLM convert the model.

    Raises:
        ConfigurationError: The model does not exist, is not a classifier with one class, or has no safetensors.
    """
    config = read_config(block, model.served_name, model.revision)
    if config is None:
        return
    if OVERRIDES not in engine_args and (fault := fault_of(config)):
        raise ConfigurationError(
            f"{block}.source: {model.source} {fault}: name a sequence classifier with one class, such as a reward model or a "
            "cross-encoder"
        )
    _check_weights(f"{block}.source", model)


def fault_of(config: Mapping[str, Any]) -> str:
    """Why a model with this config.json gives no usable score; empty when it does, or when that cannot be known."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return ""
    name = str(cast(list[Any], architectures)[0])
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return f"is a language model ({name}), which writes text and gives no scores"
    if name.endswith("ForSequenceClassification") and (classes := _num_classes(config)) != 1:
        return f"is a classifier ({name}) with {classes} classes, whose scores are not a reward"
    return ""


def _num_classes(config: Mapping[str, Any]) -> int:
    labels, count = config.get("id2label"), config.get("num_labels")
    if isinstance(labels, dict):
        return len(cast(dict[str, Any], labels))
    return count if isinstance(count, int) else _DEFAULT_CLASSES


def _check_weights(field: str, model: ScoringModel) -> None:
    """Raises ConfigurationError when vLLM would find no safetensors, or would have to unpickle what there is."""
    source = model.served_name
    if source.startswith("/"):
        with reading(f"{field}: {source} cannot be read", remedy="correct source, or restore the folder"):
            check_folder(Path(source), field)
        return
    check_names(hub_names(source, model.revision), source, field)
