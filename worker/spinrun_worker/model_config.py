"""A model's config.json, and what it says against a run before anything heavy starts."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from spinrun_api.run import SpinRun
from spinrun_protocol.model_limits import fitted, lengths_that_shrank, problems_with_model, problems_with_scorer
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.model_files import read_object
from spinrun_worker.reading import reading

logger = logging.getLogger(__name__)


def fit_to_model(run: SpinRun) -> SpinRun:
    """The run with the lengths that its spec leaves open, once its models' files contradict nothing.

    Raises:
        ConfigurationError: They do; the message has every field to change.
    """
    model, preference, scorer = run.spec.model, run.spec.preference, run.spec.scorers
    config = read_config("spec.model", model.source, model.revision)
    problems = problems_with_model(run, config, os.environ) if config is not None else []
    if preference.own_model is not None and scorer is not None:
        block = f"spec.preference.{preference.name}"
        own = read_config(block, preference.own_model.served_name, preference.own_model.revision)
        problems += problems_with_scorer(scorer, own) if own is not None else []
    if problems:
        raise ConfigurationError("; ".join(map(str, problems)))
    fitting = fitted(run, config)
    if shrunk := lengths_that_shrank(run, fitting):
        logger.info("%s", shrunk)
    return fitting


def read_config(block: str, source: str, revision: str | None) -> Mapping[str, Any] | None:
    """A model's config.json; None when it cannot be read from here.

    An image of vLLM may hold models that no other container sees.

    Args:
        block: Path of the model's block in the spec.
        source: Hub id or absolute path of a folder.
        revision: Of the Hub model.

    Raises:
        ConfigurationError: The model does not exist, or its config.json is not one.
    """
    path, field = _config_path(block, source, revision), f"{block}.source"
    if path is None:
        return None
    with reading(f"{field}: {path} cannot be read", remedy="correct source, or restore the file"):
        return read_object(path, field)


def _config_path(block: str, source: str, revision: str | None) -> Path | None:
    if source.startswith("/"):
        folder = Path(source)
        return folder / "config.json" if folder.exists() else None
    try:
        return Path(hf_hub_download(source, "config.json", revision=revision))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        first = str(error).splitlines()[0]
        raise ConfigurationError(
            f"{block}.source: the Hub has no model {source} that this run may read ({first}): correct source or revision, or "
            "give the containers a Hub token"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise ConfigurationError(f"{block}.source: {source} is not a Hugging Face model: it has no config.json") from error
    except OSError as error:
        # Neither the Hub nor a copy in the cache: other containers may have one, or reach the Hub another way.
        logger.warning("%s.source: %s cannot be checked from here: %s", block, source, str(error).splitlines()[0])
        return None
