"""`spinrun validate` is given whatever a file can hold: it says OK or what is wrong, and is right when it says OK."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import strategies as st
from jsonschema import Draft4Validator, validators
from jsonschema.exceptions import ValidationError as SchemaError

from fuzz.shell import assert_ended_well, spinrun
from fuzz.strategies import damaged, fuzz, integers, mutated, nested, plain_texts, scalars, trees
from spinrun_api import yaml_text
from spinrun_api.crd import custom_resource_definition
from spinrun_api.documents import parse_run, read_documents

Json = Any

SCHEMA: Json = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _check_pattern(_: object, pattern: str, value: object, __: object) -> Iterator[SchemaError]:
    """As the API server does."""
    if isinstance(value, str) and not regex.search(_in_python(pattern), value):
        yield SchemaError(f"{value!r} does not match {pattern!r}")


def _in_python(pattern: str) -> str:
    """A pattern of Go's, where $ is the end of the text and a character's code stands in braces."""
    pattern = regex.sub(r"\\x\{(\w+)\}", lambda code: f"\\U{code[1]:0>8}", pattern)
    return pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern


CRD = validators.extend(Draft4Validator, {"pattern": _check_pattern})(SCHEMA)
LONGEST_SECONDS = 5
"""Of processor time for a file: the largest that is read takes less than one."""

MINIMAL: Json = {
    "apiVersion": "spinrun.dev/v1alpha1",
    "kind": "SpinRun",
    "metadata": {"name": "fuzz"},
    "spec": {
        "model": {"source": "a/b"},
        "data": {"prompts": {"source": "arithmetic"}},
        "preference": {"rule": {"kind": "lastNumber"}},
        "duration": {"windows": 1},
    },
}


def from_schema(schema: Json) -> st.SearchStrategy[Json]:
    """What a structural schema allows, rules over several fields aside: any subset of the fields that need not be there."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        fields = {name: from_schema(inner) for name, inner in schema["properties"].items()}
        few = {name: strategy for name, strategy in fields.items() if name in required}
        return st.fixed_dictionaries(few, optional={name: fields[name] for name in fields.keys() - required})
    if kind == "object":
        inner = schema.get("additionalProperties")
        values = from_schema(inner) if isinstance(inner, dict) else trees(_scalars_of_yaml, plain_texts)
        return st.dictionaries(plain_texts, values, max_size=3)
    if kind == "array":
        return st.lists(from_schema(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    if kind == "string":
        return _texts_of(schema)
    if kind == "integer":
        return _near(int, schema) | st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1))
    if kind == "number":
        return _near(float, schema) | st.floats(-1e9, 1e9)
    if kind == "boolean":
        return st.booleans()
    return scalars


def _texts_of(schema: Json) -> st.SearchStrategy[str]:
    pattern = schema.get("pattern", "")
    likely = st.sampled_from(["a", "1", "512Mi", "ReadWriteMany", "a/b"]) | plain_texts
    if pattern and not regex.search(r"\\[pPx]", pattern):  # which the generator does not know
        likely |= st.from_regex(pattern, fullmatch=True)
    least, most = schema.get("minLength", 0), schema.get("maxLength", 10**6)
    return likely.filter(lambda text: least <= len(text) <= most and bool(regex.search(_in_python(pattern), text)))


_scalars_of_yaml = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | plain_texts


def _near(kind: type, schema: Json) -> st.SearchStrategy[Json]:
    """Bounds, values beyond them, and small numbers."""
    bounds = [schema[name] for name in ("minimum", "maximum", "default") if name in schema]
    return st.sampled_from([kind(value + change) for value in [*bounds, 1] for change in (-1, 0, 1)])


BLOCKS = {name: from_schema(block) for name, block in SCHEMA["properties"]["spec"]["properties"].items()}


@st.composite
def runs(draw: st.DrawFn) -> Json:
    """The minimal run, with a part of the schema in place of some of its fields."""
    document = json.loads(json.dumps(MINIMAL))
    for name in draw(st.lists(st.sampled_from(sorted(BLOCKS)), max_size=4, unique=True)):
        document["spec"][name] = draw(BLOCKS[name])
    return document


@st.composite
def yaml_of(draw: st.DrawFn, documents: st.SearchStrategy[Json]) -> bytes:
    """Documents as text: as YAML or as JSON, which is YAML too, one or two of them."""
    written: list[str] = []
    for _ in range(draw(st.integers(1, 2))):
        document = draw(documents)
        try:
            written.append(yaml_text.dump(document) if draw(st.booleans()) else json.dumps(document))
        except ValueError:
            written.append(json.dumps(document))
    return "\n---\n".join(written).encode("utf-8", "surrogatepass")


TOKENS = (
    *("a", "b: ", "- ", "? ", ": ", "{", "}", "[", "]", ", ", "\n", "\n  ", "\n    ", "\t", "#", "'", '"', "|\n", ">-\n"),
    *("&x ", "*x", "*y", "<<: ", "!!int ", "!!float ", "!!set ", "!!binary ", "!!python/name:os.system ", "!x "),
    *("---\n", "...\n", "%YAML 1.1\n", "\ufeff", "\0", "0x1F", "1:30", "2024-01-01", ".nan", "-.inf", "1e999", "9" * 5000),
    *("\\uD800", "kind: SpinRun\n", "spec: ", "metadata: {name: x}\n"),
)  # fmt: skip
soups = st.lists(st.sampled_from(TOKENS), max_size=60).map(lambda tokens: "".join(tokens).encode("utf-8", "surrogatepass"))


def check(path: Path, content: bytes) -> None:
    """Validate a file, and hold the command to what it says."""
    path.write_bytes(content)

    started = time.process_time()
    ended = spinrun("validate", str(path))
    assert time.process_time() - started < LONGEST_SECONDS

    assert_ended_well(ended, codes=(0, 2))
    for line in ended.out.splitlines():
        assert line.startswith(str(path)), f"this line does not name its file: {line!r}"
    if ended.code == 0:
        for document in read_documents(path):
            if document.get("kind", "SpinRun") == "SpinRun":
                assert_is_a_run(document)
    as_json = spinrun("validate", "--output", "json", str(path))
    assert_ended_well(as_json, codes=(ended.code,))
    assert all(found["valid"] is not bool(found["problems"]) for found in json.loads(as_json.out))


def assert_is_a_run(document: Json) -> None:
    """What validate has called OK: JSON, a run that survives being written and read again, and one that the CRD takes too."""
    json.dumps(document, allow_nan=False)
    stored = parse_run(document).to_document()
    assert parse_run(yaml_text.load_value(yaml_text.dump(stored))).to_document() == stored
    CRD.validate({name: value for name, value in document.items() if name != "status"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


@fuzz(100, content=yaml_of(runs()))
def test_runs_of_the_schema(path: Path, content: bytes) -> None:
    check(path, content)


@fuzz(200, content=yaml_of(mutated(runs())))
def test_runs_with_wrong_values(path: Path, content: bytes) -> None:
    check(path, content)


@fuzz(150, content=damaged(yaml_of(st.just(MINIMAL) | runs())))
def test_damaged_files(path: Path, content: bytes) -> None:
    check(path, content)


@fuzz(150, content=soups | st.binary(max_size=200))
def test_files_that_are_hardly_yaml(path: Path, content: bytes) -> None:
    check(path, content)


@fuzz(15, depth=st.integers(90, 20_000), opening=st.sampled_from(["[", "{a: ", "- ", "? "]))
def test_deep_files(path: Path, depth: int, opening: str) -> None:
    check(path, b"kind: SpinRun\nspec: \n  x: " + opening.encode() * depth)
    check(path, json.dumps(MINIMAL | {"metadata": nested(min(depth, 300))}).encode())


@fuzz(15, width=st.integers(1, 12), levels=st.integers(1, 9), number=integers)
def test_files_that_grow_as_they_are_read(path: Path, width: int, levels: int, number: int) -> None:
    lines = [f"a0: &a0 [{number}]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels + 1)]
    check(path, "\n".join(["kind: SpinRun", *lines]).encode())
