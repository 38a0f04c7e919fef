"""Reading SpinRun documents: every problem at once, each with its path in the document and a remedy."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spinrun_api.base import ApiModel, models_in
from spinrun_api.run import KIND, SpinRun
from spinrun_api.spec.method import LOSS_BLOCKS, MOVED, Method


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document."""

    path: str
    """Where, as in spec.method.beta; empty for the document as a whole."""

    message: str
    """What is wrong and what to do."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidDocumentError(ValueError):
    """A document that is not a valid SpinRun; `problems` names everything that is wrong with it."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class _Loader(yaml.SafeLoader):
    """Reads numbers as kubectl does: 5e-7 and 1e3 are numbers, which YAML 1.1 without a dot takes for text."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file that are not empty.

    Raises:
        InvalidDocumentError: The file cannot be read, is not YAML, or holds something other than mappings.
    """
    try:
        documents = [document for document in yaml.load_all(path.read_text("utf-8"), _Loader) if document is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDocumentError(str(path), [Problem("", f"cannot be read: {error}")]) from error
    except yaml.YAMLError as error:
        raise InvalidDocumentError(str(path), [Problem("", f"is not YAML: {error}")]) from error
    if not documents:
        raise InvalidDocumentError(str(path), [Problem("", f"is empty: write a {KIND} into it")])
    for document in documents:
        if not isinstance(document, dict):
            raise InvalidDocumentError(str(path), [Problem("", f"a document must be a mapping, got {type(document).__name__}")])
    return documents


def parse_value(text: str) -> Any:
    """One value written in YAML, read as it would be in a document.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    return yaml.load(text, _Loader)


def parse_run(document: Mapping[str, Any], source: str = "document") -> SpinRun:
    """The SpinRun that a user's document describes, defaults filled in.

    Args:
        document: The document as it was written: of the shape of today.
        source: What the problems name as their place, such as a file.

    Raises:
        InvalidDocumentError: The document is not a valid SpinRun; the error has every problem.
    """
    try:
        return SpinRun.model_validate(document)
    except ValidationError as error:
        raise InvalidDocumentError(source, [_problem(details) for details in error.errors()]) from error


def parse_stored_run(document: Mapping[str, Any], source: str = "document") -> SpinRun:
    """The SpinRun of a stored document, which may be from an earlier version of SpinRun.

    Raises:
        InvalidDocumentError: As from `parse_run`.
    """
    return parse_run(in_todays_shape(document), source)


def read_run(path: Path) -> SpinRun:
    """The one SpinRun of a file that SpinRun has written, possibly an earlier version of it.

    Raises:
        InvalidDocumentError: There is none or more than one, or as from `parse_run`.
    """
    documents = [document for document in read_documents(path) if document.get("kind", KIND) == KIND]
    if len(documents) != 1:
        raise InvalidDocumentError(str(path), [Problem("", f"must hold exactly one {KIND}, holds {len(documents)}")])
    return parse_stored_run(documents[0], str(path))


def in_todays_shape(document: Mapping[str, Any]) -> dict[str, Any]:
    """A stored document with the fields that have moved since in their new places.

    Values that are the default there are left out: a document that never set them is then the same as one written today, for
    those who compare or hash it, and most runs do not notice that they were converted.
    """
    spec = document.get("spec")
    method = spec.get("method") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(method, Mapping):
        return dict(document)
    kept = {name: value for name, value in method.items() if name not in {moved.old for moved in MOVED}}
    loss = str(method.get("loss", Method.model_fields["loss"].default))
    defaults = LOSS_BLOCKS[loss]().to_document() if loss in LOSS_BLOCKS else {}
    # Fields of other losses are dropped: the rules of that time allowed them only values without effect.
    settings = {moved.new: method[moved.old] for moved in MOVED if moved.old in method and loss in moved.losses}
    settings = {name: value for name, value in settings.items() if value != defaults[name]}
    if settings:
        kept[loss] = settings | kept.get(loss, {})
    return {**document, "spec": {**spec, "method": kept}}


def _problem(details: ErrorDetails) -> Problem:
    path = ".".join(str(part) for part in details["loc"])
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        if moved := next((moved for moved in MOVED if moved.path == path), None):
            return Problem(path, moved.refusal.removeprefix(f"{path} "))
        return Problem(path, f"unknown field{_suggestion(details['loc'])}: remove it or correct its name")
    if kind == "missing":
        return Problem(path, "is required: add it")
    message = details["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return Problem(path, message)
    return Problem(path, f"{message[:1].lower()}{message[1:]}, got {_shown(value)}")


def _suggestion(location: tuple[int | str, ...]) -> str:
    """' (did you mean x?)' when a field of that block has a similar name."""
    names = _field_names(SpinRun, location[:-1])
    close = get_close_matches(str(location[-1]), names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _field_names(model: type[ApiModel], location: tuple[int | str, ...]) -> list[str]:
    """Outside names of the fields of the block at a location."""
    for part in location:
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        found = next(models_in(fields.get(str(part))), None)
        if found is None:
            return []
        model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
