"""The files of a model: JSON that can be read, and weights that run no code when they are loaded.

A pickle (pytorch_model.bin, *.pt) runs code as it is read, so weights are taken from safetensors alone, whoever reads them: the
trainer, vLLM in rollouts and scorers, adapters. transformers would also take a pickle that the index of the safetensors names,
or config.json, and ask a service for a conversion of it; vLLM would by itself where there is nothing else.
"""

import json
import logging
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from spinrun_worker.errors import ConfigurationError

logger = logging.getLogger(__name__)

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

CONVERT = (
    "convert it once, where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER) writes safetensors; "
    "then name that folder"
)
"""What to do with a model that has no safetensors."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
"""Pickles that trainers leave beside a model, and that are not its weights."""


def is_pickle(name: str) -> bool:
    """Whether a file of this name is read by unpickling it."""
    return name.endswith(_PICKLED)


def find_file(source: str, revision: str | None, name: str) -> Path | None:
    """A file of a model, from its folder, the cache or the Hub; None when there is none of this name, or none to be had.

    Raises:
        OSError: It cannot be reached.
    """
    folder = Path(source)
    if folder.is_absolute() or folder.is_dir():
        return folder / name if (folder / name).exists() or (folder / name).is_symlink() else None
    # Here, because agents need only what is below.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (EntryNotFoundError, HFValidationError):
        return None


def hub_names(source: str, revision: str | None) -> list[str]:
    """Names of the files of a model of the Hub; none where they are not to be had."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(source, revision=revision)
    except Exception as error:  # noqa: BLE001 - who reads the files themselves may still reach them, and says what is wrong
        logger.info("the names of the files of %s are not known here: %s", source, error)
        return []


def read_object(path: Path, field: str) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Args:
        path: The file.
        field: The spec's field that names the model.

    Raises:
        ConfigurationError: It holds something else.
        OSError: It cannot be read.
    """
    _check_regular(path, field)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{field}: {path} is not JSON ({error}): restore the file, or remove it and use another"
        ) from error
    if not isinstance(document, dict):
        kind = "null" if document is None else f"a {type(document).__name__}"
        raise ConfigurationError(f"{field}: {path} must hold a JSON object, and holds {kind}: restore the file")
    return cast(dict[str, Any], document)


def check_folder(folder: Path, field: str) -> None:
    """Look at a model's folder: whether it is one, and whether its weights are safetensors, whole and without code.

    A folder without any weights passes: what reads it says so better.

    Args:
        folder: The folder.
        field: The spec's field that names it.

    Raises:
        ConfigurationError: Names the file and the remedy.
        OSError: It cannot be read.
    """
    if not folder.is_dir():
        fault = (
            "is a file, not a folder: name the folder that holds it" if folder.exists() else "does not exist: correct the path"
        )
        raise ConfigurationError(f"{field}: {folder} {fault}")
    if (folder / CONFIG).exists():
        check_config(read_object(folder / CONFIG, field), str(folder / CONFIG), field)
    names = sorted(entry.name for entry in folder.iterdir())
    inside = [path.relative_to(folder).as_posix() for path in folder.glob("*_Dense/*")]
    check_names([*names, *inside], str(folder), field)
    shards = [name for name in names if name.endswith(".safetensors")]
    if (folder / INDEX).exists() and WEIGHTS not in names:
        shards = check_index(read_object(folder / INDEX, field), str(folder / INDEX), field)
    for name in shards:
        _check_shard(folder / name, field)


def check_names(names: Iterable[str], source: str, field: str) -> None:
    """Look for weights among a model's files that are there only in a form that runs code.

    Args:
        names: The files by their paths, with / between folders.
        source: Where they are.
        field: The spec's field that names it.

    Raises:
        ConfigurationError: There are some.
    """
    by_folder: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, _ = name.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    for folder, files in by_folder.items():
        # Of folders inside, vLLM reads those of layers that sentence-transformers puts on top. Others are for other libraries.
        if folder and not folder.endswith("_Dense"):
            continue
        pickles = [name for name in files if is_pickle(name) and name not in _NO_WEIGHTS]
        if pickles and not any(name.endswith(".safetensors") for name in files):
            raise ConfigurationError(
                f"{field}: {source} has its weights in {pickles[0]} alone, which runs code when it is loaded, and no "
                f"*.safetensors: {CONVERT}"
            )


def check_config(config: Mapping[str, Any], path: str, field: str) -> None:
    """Look for a name of weights in config.json that are not safetensors. Raises ConfigurationError."""
    named = config.get("transformers_weights")
    if named is not None and not str(named).endswith((".safetensors", ".safetensors.index.json")):
        raise ConfigurationError(f"{field}: {path} names {named!r} as its weights, which are not safetensors: {CONVERT}")


def check_index(index: Mapping[str, Any], path: str, field: str) -> list[str]:
    """The files that an index names. Raises ConfigurationError when one is not safetensors of the same folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(index.get("metadata"), dict):
        raise ConfigurationError(
            f"{field}: {path} must have metadata and a weight_map, which says in which file a tensor is: restore the file"
        )
    names = sorted({str(name) for name in cast(dict[str, Any], weight_map).values()})
    for name in names:
        if not name.endswith(".safetensors"):
            raise ConfigurationError(f"{field}: {path} names {name}, which is not safetensors: {CONVERT}")
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ConfigurationError(f"{field}: {path} names {name}, which is outside of its folder: restore the file")
    return names


def _check_shard(path: Path, field: str) -> None:
    """Check that header and size of a file agree. Raises ConfigurationError."""
    if not path.exists() and not path.is_symlink():
        raise ConfigurationError(f"{field}: {path} is missing, which {INDEX} names: copy the model again")
    _check_regular(path, field)
    try:
        with cast(Any, safe_open(path, framework="numpy")):
            pass
    except SafetensorError as error:
        raise ConfigurationError(
            f"{field}: {path} is not a whole safetensors file ({error}), as after a download that was cut short: copy it again"
        ) from error


def _check_regular(path: Path, field: str) -> None:
    """A pipe would be waited for. Raises ConfigurationError, or OSError when there is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise
        raise ConfigurationError(f"{field}: {path} leads to a file that is not there: copy the model again") from error
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"{field}: {path} is not a regular file: restore it")
