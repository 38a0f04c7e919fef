"""Reading SpinRun documents: every problem at once, each with its path in the document and a remedy."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spinrun_api.base import ApiModel, models_in
from spinrun_api.pod_template import clashes
from spinrun_api.redaction import BLOT, is_secret_name, redacted_text
from spinrun_api.run import KIND, SpinRun
from spinrun_api.spec.method import LOSS_BLOCKS, MOVED, Method
from spinrun_api.yaml_text import MAX_DEPTH, MAX_NODES, InvalidYamlError, load_documents

MAX_FILE_BYTES = 4_000_000
"""Of a file with documents, comments included."""
MAX_SPEC_BYTES = 256 * 1024
"""Of a spec as JSON. `kubectl apply` takes no more: it keeps what it applied in an annotation."""
MAX_SPEC_NODES = MAX_NODES * 9 // 10
"""Mappings, lists and single values of a spec, keys included: with its defaults it must still be read from a file."""
MAX_SPEC_DEPTH = MAX_DEPTH * 9 // 10
"""Mappings and lists of a spec that stand inside one another."""
MAX_PROBLEMS = 100
"""Problems of a document that are told at once."""
PODS = ("trainer", "rollout", "scorer")
"""Blocks of the spec with pod templates."""
OPENED_BEFORE = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
"""Where the shell's pipes have names: standard input and <(command). They end when their writer does."""


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


def read_documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file that are not empty: trees of what JSON has.

    Args:
        path: A file of at most MAX_FILE_BYTES, standard input, or what the shell makes of <(command).

    Raises:
        InvalidDocumentError: The file cannot be read, is not YAML, holds something other than mappings, or exceeds the limits
            of `spinrun_api.yaml_text`.
    """
    try:
        documents = [document for document in load_documents(_read_text(path)) if document is not None]
    except OSError as error:
        raise InvalidDocumentError(str(path), [Problem("", f"cannot be read: {error.strerror}")]) from error
    except InvalidYamlError as error:
        raise InvalidDocumentError(str(path), [Problem("", str(error))]) from error
    if not documents:
        raise InvalidDocumentError(str(path), [Problem("", f"is empty: write a {KIND} into it")])
    for document in documents:
        if not isinstance(document, dict):
            raise InvalidDocumentError(str(path), [Problem("", f"a document must be a mapping, got {type(document).__name__}")])
    return documents


def _read_text(path: Path) -> str:
    """A file's text. Raises InvalidDocumentError, and OSError."""
    opened_before = path.parent in OPENED_BEFORE and (path.name == "stdin" or path.name.isdigit())
    mode = path.stat().st_mode
    if not opened_before and not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise InvalidDocumentError(str(path), [Problem("", f"is {what}: name a file")])
    # Should a pipe have taken the file's place since, a reader would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if opened_before else os.O_NONBLOCK))
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1) or b""  # None from what has nothing to say yet, such as /proc/kmsg
    if len(content) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 1_000_000} MB"
        raise InvalidDocumentError(str(path), [Problem("", f"is larger than {limit}: name a file that holds {KIND}s alone")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (byte 0x{error.object[error.start]:02x}): save the file as UTF-8"
        raise InvalidDocumentError(str(path), [Problem("", f"line {line}: {message}")]) from error


def parse_run(document: Mapping[str, Any], source: str = "document") -> SpinRun:
    """The SpinRun that a user's document describes, defaults filled in.

    Args:
        document: The document as it was written: of the shape of today.
        source: What the problems name as their place, such as a file.

    Raises:
        InvalidDocumentError: The document is not a valid SpinRun; the error has every problem.
    """
    if (problem := size_problem(document.get("spec"))) is not None:
        raise InvalidDocumentError(source, [problem])
    clashing = _clashes(document)[:MAX_PROBLEMS]
    try:
        run = _modelled(document, source)
    except InvalidDocumentError as error:
        raise InvalidDocumentError(source, [*error.problems, *clashing]) from error.__cause__
    if clashing:
        raise InvalidDocumentError(source, clashing)
    return run


def size_problem(spec: object) -> Problem | None:
    """What makes a spec too large to be worked on; None where nothing does.

    Args:
        spec: Any value that JSON has, nested as deep as may be.
    """
    waiting: list[tuple[object, int, str]] = [(spec, 1, "spec")]
    num_nodes = 1
    while waiting:
        value, depth, path = waiting.pop()
        if isinstance(value, Mapping):
            entries = list(value.items())
            num_nodes += 2 * len(entries)
        elif isinstance(value, list):
            entries = list(enumerate(value))
            num_nodes += len(entries)
        else:
            continue
        if depth > MAX_SPEC_DEPTH:
            return Problem(path, f"is nested deeper than {MAX_SPEC_DEPTH} levels: remove what does not belong there")
        if num_nodes > MAX_SPEC_NODES:
            return Problem("spec", f"holds more than {MAX_SPEC_NODES} values: move what is long into a ConfigMap or an image")
        # Where it is, down to a block's field: what lies below may be of any length.
        waiting += [(entry, depth + 1, f"{path}.{_shortened(str(name))}" if depth <= 2 else path) for name, entry in entries]
    try:
        size = len(json.dumps(spec, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "surrogatepass"))
    except (TypeError, ValueError):
        return None  # Python's values that JSON does not have, which the models refuse with their place
    if size > MAX_SPEC_BYTES:
        limit = f"{MAX_SPEC_BYTES // 1024} KiB"
        return Problem("spec", f"takes {size} bytes as JSON, more than {limit}: move what is long into a ConfigMap or an image")
    return None


def parse_stored_run(document: Mapping[str, Any], source: str = "document") -> SpinRun:
    """The SpinRun of a stored document, which may be from an earlier version of SpinRun, and may be of any size.

    Raises:
        InvalidDocumentError: As from `parse_run`, but for pod templates, of which the API server has the last word.
    """
    return _modelled(in_todays_shape(document), source)


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


def _modelled(document: Mapping[str, Any], source: str) -> SpinRun:
    """The document as a model. Raises InvalidDocumentError."""
    try:
        # By the names of the API alone: the API server does not know Python's.
        return SpinRun.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidDocumentError(source, _problems(error)) from error


def _clashes(document: Mapping[str, Any]) -> list[Problem]:
    """Where pod templates have two of what there may be one."""
    spec = document.get("spec")
    blocks = spec.items() if isinstance(spec, Mapping) else ()
    templates = [(f"spec.{name}.template", block["template"]) for name, block in blocks if _has_pods(name, block)]
    return [Problem(path, message) for place, template in templates for path, message in clashes(template, path=place)]


def _has_pods(name: object, block: object) -> bool:
    return name in PODS and isinstance(block, Mapping) and "template" in block


def _problems(error: ValidationError) -> list[Problem]:
    """Everything that is wrong, up to MAX_PROBLEMS."""
    found = error.errors(include_url=False, include_context=False)
    problems = [_problem(details) for details in found[:MAX_PROBLEMS]]
    further = len(found) - len(problems)
    return [*problems, Problem("", f"{further} further problems: correct these first")] if further else problems


def _problem(details: ErrorDetails) -> Problem:
    # Pydantic marks what is wrong with a key, and not with its value.
    path = ".".join(_shortened(str(part)) for part in details["loc"] if part != "[key]")
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        if moved := next((moved for moved in MOVED if moved.path == path), None):
            return Problem(path, moved.refusal.removeprefix(f"{path} "))
        return Problem(path, f"unknown field{_suggestion(details['loc'])}: remove it or correct its name")
    if kind == "missing":
        return Problem(path, "is required: add it")
    message = details["msg"].removeprefix("Value error, ")
    # What is wrong with a name is told without the value.
    is_secret = details["loc"][-1:] != ("[key]",) and any(is_secret_name(str(part)) for part in details["loc"][-2:])
    if kind == "value_error":
        # The remedy may repeat the value.
        return Problem(path, message.partition(":")[0] if is_secret else message)
    shown = BLOT if is_secret else redacted_text(_shown(value))
    return Problem(path, f"{message[:1].lower()}{message[1:]}, got {shown}")


def _suggestion(location: tuple[int | str, ...]) -> str:
    """' (did you mean x?)' when a field of that block has a similar name."""
    names = _field_names(SpinRun, location[:-1])
    close = get_close_matches(_shortened(str(location[-1])), names, n=1)
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
    try:
        return _shortened(repr(value))
    except (RecursionError, ValueError):  # of Python's own limits: a thousand lists in one another, numbers of 4,300 digits
        return f"a {type(value).__name__} too large to show"


def _shortened(text: str) -> str:
    """A part of a document, in one line: what stands there must not look like a problem of its own."""
    text = " ".join(text.encode(errors="replace").decode().splitlines())
    return text if len(text) <= 80 else f"{text[:77]}..."
