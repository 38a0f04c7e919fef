"""Reading a run file with fields replaced from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spinrun_api.documents import InvalidDocumentError, parse_run, read_documents
from spinrun_api.run import KIND, SpinRun
from spinrun_api.yaml_text import MAX_DEPTH, InvalidYamlError, load_value
from spinrun_cli.errors import InvalidInputError

Document = dict[str, Any]

PATH_FIELDS = (
    ("spec", "model", "source"),
    ("spec", "model", "tokenizer"),
    ("spec", "data", "prompts", "source"),
    ("spec", "data", "evaluation", "source"),
)
"""Fields that may name a file or folder of this machine."""


def read_run(path: Path, overrides: Sequence[str] = ()) -> SpinRun:
    """The one SpinRun of a file, with `PATH=VALUE` overrides in place of its own fields.
    A path that starts with ./, ../ or ~/ is made absolute: in the file relative to the file's folder, in an override relative
    to the working directory.

    Raises:
        InvalidInputError: The message names every problem.
    """
    try:
        ours = [document for document in read_documents(path) if document.get("kind", KIND) == KIND]
        if len(ours) != 1:
            raise InvalidInputError(f"{path} must hold exactly one {KIND}, holds {len(ours)}")
        document = with_absolute_paths(ours[0], path.parent)
        for override in overrides:
            document = merge(document, with_absolute_paths(parse_override(override), Path.cwd()))
        return parse_run(document, str(path))
    except InvalidDocumentError as error:
        raise InvalidInputError(str(error)) from error


def parse_override(text: str) -> Document:
    """`spec.duration.windows=3` as {"spec": {"duration": {"windows": 3}}}.

    Raises:
        InvalidInputError: It is written in another way.
    """
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys) or len(keys) > MAX_DEPTH:
        raise InvalidInputError(f"--set {text}: must look like spec.duration.windows=3")
    try:
        result: Any = load_value(value)
    except InvalidYamlError as error:
        raise InvalidInputError(f"--set {text}: the value cannot be read: {error}") from error
    for key in reversed(keys):
        result = {key: result}
    return result


def merge(document: Mapping[str, Any], other: Mapping[str, Any]) -> Document:
    """The document with the other's fields in place of its own; only mappings are merged, null removes a field."""
    result = dict(document)
    for key, value in other.items():
        mine = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(mine, Mapping):
            result[key] = merge(mine, value)
        else:
            result[key] = value
    return result


def with_absolute_paths(document: Mapping[str, Any], folder: Path) -> Document:
    """The document with the relative paths among PATH_FIELDS made absolute."""
    result = dict(document)
    for keys in PATH_FIELDS:
        value = _get(result, keys)
        if isinstance(value, str) and value.startswith(("./", "../", "~/")):
            absolute: Any = str((folder / Path(value).expanduser()).resolve())
            for key in reversed(keys):
                absolute = {key: absolute}
            result = merge(result, absolute)
    return result


def _get(document: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
