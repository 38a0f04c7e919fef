"""What can be known to be wrong before anything heavy starts, and what a run on one machine does not use."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from spinrun_api.base import ApiModel
from spinrun_api.run import SpinRun
from spinrun_api.spec import DATA_SUFFIXES, Scorer, Source, SpinRunSpec
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_protocol.environment import PREFERENCE_KEY

UNUSED = (
    "storage",
    "network",
    "rollout.image",
    "rollout.template",
    "scorer.image",
    "scorer.template",
    "trainer.nodes",
    "trainer.image",
    "trainer.template",
    "lifecycle.suspend",
    "lifecycle.activeDeadlineSeconds",
    "lifecycle.progressDeadlineSeconds",
    "lifecycle.ttlSecondsAfterFinished",
    "lifecycle.managedBy",
)
"""Fields of the spec that only a cluster has a use for."""


def check_installed() -> None:
    """Looks for the packages of the worker.

    Raises:
        CommandError: Some are missing.
    """
    missing = [name for name in ("torch", "transformers", "peft", "aiohttp", "vllm") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"missing packages: {', '.join(missing)}. Install the worker: pip install 'spinrun[worker,cpu]' "
            "(on GPUs 'spinrun[worker]' and vllm)"
        )


def check_preference(run: SpinRun) -> None:
    """Look for the key of the preference's endpoint.

    Raises:
        InvalidInputError: It is not there.
    """
    endpoint = run.spec.preference.endpoint
    if endpoint is not None and endpoint.secret_ref is not None and not os.environ.get(PREFERENCE_KEY, "").strip():
        raise InvalidInputError(
            f"spec.preference.{run.spec.preference.name}.secretRef: on one machine the key comes from the environment: set "
            f"{PREFERENCE_KEY}"
        )


TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboardX", "mlflow": "mlflow"}
"""The package of each tracker, by its name in spec.telemetry, which is that of the extra that installs it."""


def check_trackers(run: SpinRun) -> None:
    """Look for the packages of trackers.

    Raises:
        InvalidInputError: One is missing. A run would continue without it; here it is quickly fixed.
    """
    for name, package in TRACKERS.items():
        if getattr(run.spec.telemetry, name) is not None and importlib.util.find_spec(package) is None:
            raise InvalidInputError(
                f"spec.telemetry.{name}: the package {package} is missing: pip install 'spinrun[{name}]', or remove the field"
            )


def check_sources(run: SpinRun) -> None:
    """Look for the model, the tokenizer and data files.

    Raises:
        InvalidInputError: Names the first that is missing.
    """
    model, data = run.spec.model, run.spec.data
    _check_model("spec.model", model.source, model.revision)
    if model.tokenizer is not None and model.tokenizer.startswith("/") and not Path(model.tokenizer).is_dir():
        raise InvalidInputError(f"spec.model.tokenizer: {model.tokenizer} is not a folder: correct the path")
    for block, source in data.prompts.each.items():
        _check_data(block, source)
    if data.evaluation is not None:
        _check_data("data.evaluation", data.evaluation)
    _check_scorer(run)


def _check_scorer(run: SpinRun) -> None:
    preference, scorers = run.spec.preference, run.spec.scorers
    if preference.own_model is None or scorers is None:
        return
    from spinrun_worker.errors import ConfigurationError
    from spinrun_worker.rewards.source import check_source

    block = f"spec.preference.{preference.name}"
    _check_model(block, preference.own_model.served_name, preference.own_model.revision)
    try:
        check_source(block, preference.own_model, scorers.engine_args)
    except ConfigurationError as error:
        raise InvalidInputError(str(error)) from error


def fit_to_model(run: SpinRun) -> SpinRun:
    """The run with the lengths that its spec leaves open, by what its model reads.

    Raises:
        InvalidInputError: The files of its models contradict the spec; the message has every field to change.
    """
    from spinrun_worker.errors import ConfigurationError
    from spinrun_worker.model_config import fit_to_model as fit

    try:
        return fit(run)
    except ConfigurationError as error:
        raise InvalidInputError(str(error)) from error


def _check_model(block: str, source: str, revision: str | None) -> None:
    if source.startswith("/"):
        folder = Path(source)
        if not folder.is_dir():
            raise InvalidInputError(f"{block}.source: {source} is not a folder: correct the path, or name a Hub model")
        config = folder / "config.json"
    else:
        folder, config = None, config_of_hub_model(block, source, revision)
    from spinrun_worker.errors import ConfigurationError
    from spinrun_worker.model_files import check_folder, read_object

    try:
        known = "model_type" in read_object(config, block)
    except (OSError, ConfigurationError):
        known = False
    if not known:
        raise InvalidInputError(
            f"{block}.source: {source} is not a Hugging Face model: its config.json is missing or has no model_type"
        )
    try:
        if folder is not None:
            check_folder(folder, f"{block}.source")
    except (OSError, ConfigurationError) as error:
        raise InvalidInputError(str(error)) from error


def config_of_hub_model(block: str, source: str, revision: str | None) -> Path:
    """The config.json of a model of the Hub, from the cache or fetched.

    Args:
        block: Path of the model's block in the spec.
        source: Its id.
        revision: Its revision.

    Raises:
        InvalidInputError: It is not to be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(source, "config.json", revision=revision))
    except HFValidationError as error:
        hint = f"write ./{source} for the folder" if Path(source).exists() else "write ORGANISATION/NAME or an absolute path"
        raise InvalidInputError(f"{block}.source: {source} is not the id of a Hub model: {hint}") from error
    except GatedRepoError as error:
        raise InvalidInputError(
            f"{block}.source: {source} is gated: accept its licence on the Hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidInputError(
            f"{block}.source: the Hub has no model {source} that you may read: correct the id, or log in with `hf auth login`"
        ) from error
    except (EntryNotFoundError, OSError) as error:
        # Also what is raised when the Hub cannot be reached and the cache has no copy.
        raise InvalidInputError(
            f"{block}.source: config.json of {source} was found neither in the cache nor on the Hub "
            f"({str(error).splitlines()[0]}): correct the id, check the network, or name a local folder by an absolute path"
        ) from error


def _check_data(block: str, prompts: Source) -> None:
    if not prompts.source.startswith("/"):
        return  # the built-in generator, or a Hub data set, which the trainer loads
    path = Path(prompts.source)
    if not path.is_file():
        raise InvalidInputError(f"spec.{block}.source: {path} is not a file: correct the path")
    if not prompts.suffix:
        raise InvalidInputError(f"spec.{block}.source: {path} must end with one of {', '.join(DATA_SUFFIXES)}")


def unused_fields(run: SpinRun) -> list[str]:
    """The fields that the run sets to something else than their default and that one machine has no use for."""
    spec = run.spec
    scorer = Scorer() if spec.scorer is not None else None
    defaults = SpinRunSpec(model=spec.model, data=spec.data, method=spec.method, preference=spec.preference, scorer=scorer)
    theirs, ours = dict(_values(defaults)), dict(_values(run.spec))
    return [f"spec.{path}" for path in UNUSED if ours.get(path) != theirs.get(path)]


def _values(model: ApiModel, path: str = "") -> Iterator[tuple[str, object]]:
    """Every field of a block and of the blocks in it, by its path."""
    for name, field in type(model).model_fields.items():
        value, inner = getattr(model, name), f"{path}{field.alias or name}"
        yield inner, value
        if isinstance(value, ApiModel):
            yield from _values(value, f"{inner}.")


def for_one_machine(run: SpinRun) -> SpinRun:
    """The run with one trainer node, which is this machine."""
    trainer = run.spec.trainer.model_copy(update={"nodes": 1})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"trainer": trainer})})
