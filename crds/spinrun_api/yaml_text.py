"""YAML as SpinRun reads it: JSON's values only, within limits that no file can exceed, every refusal with its line.

Numbers are read as kubectl reads them: 5e-7 and 1e3 are numbers, 0644 is octal, and 1:30 is text.
"""

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import yaml

MAX_BYTES = 1_000_000
"""Text of a document once its aliases are filled in, as UTF-8. An API server takes little more."""
MAX_NODES = 10_000
"""Mappings, lists and single values of a document, keys included, once its aliases are filled in."""
MAX_FILE_NODES = 100_000
"""The same of all documents of a text."""
MAX_DEPTH = 100
"""Mappings and lists that stand inside one another."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""Kubernetes' integers are int64."""

_PREFIX = "tag:yaml.org,2002:"
_CONTROL = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not allow, not even in quotes."""
_BOOLEANS = {
    form(word): value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for form in (str.lower, str.capitalize, str.upper)
}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0b(?P<binary>_*[01][01_]*)|0x(?P<hex>_*[0-9a-fA-F][0-9a-fA-F_]*)|0(?P<octal>[0-7_]+)|(?P<decimal>0|[1-9][0-9_]*))"
)
_BASES = {"binary": 2, "hex": 16, "octal": 8, "decimal": 10}
_FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?(?:(?:[Tt]|[ \t]+)\d\d?:\d\d:\d\d(?:\.\d*)?(?:[ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?)?", re.ASCII
)
_LONGEST_SHOWN = 60


class InvalidYamlError(ValueError):
    """Text that is not YAML, or YAML that SpinRun does not take. The message begins with the line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


@dataclass(frozen=True)
class _Node:
    """A value and what it takes up."""

    value: Any
    num_nodes: int = 1
    num_bytes: int = 0
    height: int = 0
    """Of mappings and lists inside one another, itself included."""


def load_documents(text: str) -> Iterator[Any]:
    """The values of all documents of a text, None for an empty one.

    Args:
        text: Any text.

    Yields:
        Trees of mappings with text as keys, lists, text, int64, finite floats, booleans and None.

    Raises:
        InvalidYamlError: The text is not YAML, holds something else, or is larger than the limits.
    """
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InvalidYamlError(line, f"holds the character U+{ord(found[0]):04X}, which YAML does not allow: remove it")
    try:
        yield from _Reader(text).documents()
    except yaml.MarkedYAMLError as error:
        raise _refusal(error, text) from error
    except yaml.YAMLError as error:
        raise InvalidYamlError(1, f"is not YAML: {error}") from error


def load_value(text: str) -> Any:
    """One value written in YAML, read as it would be in a document; None for an empty text.

    Args:
        text: Any text.

    Raises:
        InvalidYamlError: As from `load_documents`, or it holds several documents.
    """
    values = list(load_documents(text))
    if len(values) > 1:
        raise InvalidYamlError(text.count("\n") + 1, f"holds {len(values)} documents: write one value")
    return values[0] if values else None


def dump(document: Any, *, width: int = 120, ascii_only: bool = False) -> str:
    """A document as text that `load_documents` reads as the same: it quotes what is a number here, such as 1e3.

    Args:
        document: What JSON can hold.
        width: Characters of a line, where it can be folded.
        ascii_only: Whether other characters are escaped.
    """
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only, width=width)


class _Dumper(yaml.SafeDumper):
    """Knows what `_plain_value` takes for a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """The line ends that YAML knows beside ours are kept in double quotes alone."""
    style = '"' if any(each in text for each in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_PREFIX}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(f"{_PREFIX}float", re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+.0123456789"))


class _Reader:
    """Builds values out of the events of a text, and stops as soon as a limit is exceeded: before anything large is built."""

    def __init__(self, text: str) -> None:
        # libyaml's parser is ten times as fast as the one in Python, which is there where PyYAML was built without it.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events = cast(Iterator[Any], yaml.parse(text, Loader=loader))
        self._nodes_before = 0
        self._begin_document()

    def documents(self) -> Iterator[Any]:
        """The value of each document."""
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._nodes_before += self._num_nodes
                self._begin_document()
                yield self._node(next(self._events), depth=0).value

    def _begin_document(self) -> None:
        self._num_nodes = self._num_bytes = 0
        self._anchors: dict[str, _Node] = {}
        self._open_anchors: set[str] = set()

    def _node(self, event: Any, depth: int) -> _Node:
        """The node that begins with an event.

        Args:
            event: The event.
            depth: Number of mappings and lists around it.
        """
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        anchor: str | None = event.anchor
        if anchor is not None:
            self._open_anchors.add(anchor)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        else:
            if depth == MAX_DEPTH:
                _refuse(event, f"more than {MAX_DEPTH} mappings and lists stand inside one another: remove some")
            self._count(event, 1, 0)
            node = self._mapping(event, depth) if isinstance(event, yaml.MappingStartEvent) else self._sequence(event, depth)
        if anchor is not None:
            self._open_anchors.discard(anchor)
            self._anchors[anchor] = node
        return node

    def _alias(self, event: Any, depth: int) -> _Node:
        """A copy of the node that an alias stands for."""
        name = _shown(event.anchor)
        if event.anchor in self._open_anchors:
            _refuse(event, f"*{name} stands inside of &{name} itself: write out what you mean")
        if event.anchor not in self._anchors:
            _refuse(event, f"there is no anchor &{name} before the alias *{name}: correct its name")
        node = self._anchors[event.anchor]
        if depth + node.height > MAX_DEPTH:
            _refuse(event, f"with *{name} more than {MAX_DEPTH} mappings and lists stand inside one another: remove some")
        self._count(event, node.num_nodes, node.num_bytes)
        return _Node(copy.deepcopy(node.value), node.num_nodes, node.num_bytes, node.height)

    def _count(self, event: Any, num_nodes: int, num_bytes: int) -> None:
        """Count what is added to the document. Raises InvalidYamlError when it is too much."""
        self._num_nodes += num_nodes
        self._num_bytes += num_bytes
        if self._num_nodes > MAX_NODES:
            _refuse(event, f"with its aliases filled in, the document holds more than {MAX_NODES:,} values: make it smaller")
        if self._num_bytes > MAX_BYTES:
            _refuse(
                event, f"with its aliases filled in, the document holds more than {MAX_BYTES // 1_000_000} MB: make it smaller"
            )
        if self._nodes_before + self._num_nodes > MAX_FILE_NODES:
            _refuse(event, f"the documents of this file hold more than {MAX_FILE_NODES:,} values: split it")

    def _sequence(self, start: Any, depth: int) -> _Node:
        _check_collection_tag(start, "seq")
        before, values, height = (self._num_nodes, self._num_bytes), list[Any](), 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            node = self._node(event, depth + 1)
            values.append(node.value)
            height = max(height, node.height)
        return self._collection(values, before, height)

    def _mapping(self, start: Any, depth: int) -> _Node:
        _check_collection_tag(start, "map")
        before, height = (self._num_nodes, self._num_bytes), 0
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            is_merge = _is_merge(event)
            key = self._key(event, depth)
            if key in lines:
                _refuse(event, f"the key {_shown(key)} is already on line {lines[key]}: remove one of them")
            lines[key] = _line(event)
            node = self._node(next(self._events), depth + 1)
            height = max(height, node.height)
            if is_merge:
                merged = _merged(node.value, event)
            else:
                own[key] = node.value
        return self._collection(merged | own, before, height)

    def _collection(self, value: Any, before: tuple[int, int], height: int) -> _Node:
        num_nodes, num_bytes = before
        return _Node(value, self._num_nodes - num_nodes + 1, self._num_bytes - num_bytes, height + 1)

    def _key(self, event: Any, depth: int) -> str:
        """A key of a mapping. Raises InvalidYamlError if it is not text."""
        node = self._node(event, depth + 1)
        if not isinstance(node.value, str):
            written = event.value if isinstance(event, yaml.ScalarEvent) else json.dumps(node.value)
            _refuse(event, f"the key {_shown(written) or '(nothing)'} is not text: put it in quotes, or correct it")
        return node.value

    def _scalar(self, event: Any) -> _Node:
        text: str = event.value
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError:
            _refuse(event, "holds half of a surrogate pair: write the character itself")
        self._count(event, 1, num_bytes)
        return _Node(_scalar_value(event), num_bytes=num_bytes)


def _scalar_value(event: Any) -> Any:
    """The value of a scalar event. Raises InvalidYamlError."""
    text, tag = cast(str, event.value), cast("str | None", event.tag)
    if tag in ("!", f"{_PREFIX}str") or (tag is None and not event.implicit[0]):
        return text
    if tag is None:
        return _plain_value(event)
    wanted = {
        f"{_PREFIX}int": (int,),
        f"{_PREFIX}float": (int, float),
        f"{_PREFIX}bool": (bool,),
        f"{_PREFIX}null": (type(None),),
    }
    if tag not in wanted:
        _refuse_tag(event)
    value = _plain_value(event)
    if type(value) not in wanted[tag]:
        _refuse(event, f"{_shown(text)} does not fit its tag !!{tag.removeprefix(_PREFIX)}: remove the tag or correct the value")
    return float(value) if tag == f"{_PREFIX}float" else value


def _plain_value(event: Any) -> Any:
    """The value that a text without quotes stands for. Raises InvalidYamlError where JSON has none."""
    text = cast(str, event.value)
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _NOT_FINITE.fullmatch(text):
        _refuse(event, f"{text} is not a finite number: write a number, or put it in quotes")
    if _DATE.fullmatch(text):
        _refuse(event, f"{text} is a date in YAML: put it in quotes")
    if found := _INTEGER.fullmatch(text):
        return _integer(event, found)
    if _FLOAT.fullmatch(text):
        if math.isinf(value := float(text.replace("_", ""))):
            _refuse(event, f"{_shown(text)} is too large for a number: write a smaller one, or put it in quotes")
        return value
    return text


def _integer(event: Any, found: re.Match[str]) -> int:
    form = next(name for name in _BASES if found[name] is not None)
    # int64 has at most 64 digits, whatever the base; Python refuses to read thousands of them.
    digits = found[form].replace("_", "").lstrip("0")[:65] or "0"
    value = int(digits, _BASES[form]) * (-1 if found["sign"] == "-" else 1)
    if not MIN_INTEGER <= value <= MAX_INTEGER:
        limits = f"from {MIN_INTEGER} to {MAX_INTEGER}"
        _refuse(event, f"{_shown(event.value)} is out of range: whole numbers go {limits}; write another, or put it in quotes")
    return value


def _is_merge(event: Any) -> bool:
    """Whether a key is <<, which takes over what other mappings hold."""
    return isinstance(event, yaml.ScalarEvent) and event.value == "<<" and bool(event.implicit[0]) and event.tag is None


def _merged(value: Any, event: Any) -> dict[str, Any]:
    """What << takes over: the keys of a mapping, or of several, the first of which wins. Raises InvalidYamlError."""
    mappings = cast(list[Any], value if isinstance(value, list) else [value])
    if not all(isinstance(mapping, dict) for mapping in mappings):
        _refuse(event, "<< takes a mapping or a list of mappings: correct what follows it")
    result: dict[str, Any] = {}
    for mapping in reversed(mappings):
        result |= mapping
    return result


def _check_collection_tag(event: Any, name: str) -> None:
    if event.tag not in (None, "!", f"{_PREFIX}{name}"):
        _refuse_tag(event)


def _refuse_tag(event: Any) -> NoReturn:
    tag = cast(str, event.tag)
    shown = f"!!{tag.removeprefix(_PREFIX)}" if tag.startswith(_PREFIX) else tag
    _refuse(event, f"the tag {_shown(shown)} is not for JSON values: remove it; write a mapping, a list, text or a number")


def _refuse(event: Any, message: str) -> NoReturn:
    raise InvalidYamlError(_line(event), message)


def _refusal(error: yaml.MarkedYAMLError, text: str) -> InvalidYamlError:
    """What YAML's own parser has found, with its line."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return InvalidYamlError(1, f"is not YAML: {error.problem}")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = "; indent with spaces, not with tabs" if "\t" in line[: mark.column + 1] else ""
    context = f"{error.context}: " if error.context else ""
    return InvalidYamlError(mark.line + 1, f"is not YAML: {context}{error.problem}{hint}")


def _line(event: Any) -> int:
    return cast(int, event.start_mark.line) + 1


def _shown(text: str) -> str:
    """A part of the text, in one line: what stands there must not look like a message of its own."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
