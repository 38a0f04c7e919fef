"""Reading a run file with fields replaced from the command line."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from spinrun_api.documents import InvalidDocumentError, parse_run, read_documents
from spinrun_api.run import KIND, SpinRun
from spinrun_api.yaml_text import MAX_DEPTH, InvalidYamlError, load_value
from spinrun_cli.errors import InvalidInputError

Document = dict[str, Any]

PROMPTS = ("spec", "data", "prompts")
PATH_FIELDS = (
    ("spec", "model", "source"),
    ("spec", "model", "tokenizer"),
    (*PROMPTS, "source"),
    ("spec", "data", "evaluation", "source"),
)
"""Fields that may name a file or folder of this machine, as may the source of each of several sources of prompts."""


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
    """The document with its relative paths made absolute."""
    result: Any = copy.deepcopy(dict(document))
    for keys, value in relative_paths(document):
        block = result
        for key in keys[:-1]:
            block = block[key]
        block[keys[-1]] = str((folder / Path(value).expanduser()).resolve())
    return result


def relative_paths(document: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """Where a document, which need not be valid, names files or folders by relative paths, and these."""
    sources = _value_at(document, *PROMPTS, "sources")
    count = len(cast("list[object]", sources)) if isinstance(sources, list) else 0
    fields = [*PATH_FIELDS, *((*PROMPTS, "sources", index, "source") for index in range(count))]
    named = ((keys, _value_at(document, *keys)) for keys in fields)
    return [(keys, value) for keys, value in named if isinstance(value, str) and value.startswith(("./", "../", "~/"))]


def _value_at(document: object, *keys: str | int) -> object:
    """A value in a document, by the names of fields and places in lists; None where there is none."""
    for key in keys:
        if isinstance(key, int):
            document = cast("list[object]", document)[key]
        else:
            document = cast("Mapping[str, object]", document).get(key) if isinstance(document, Mapping) else None
    return document
