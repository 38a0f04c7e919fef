"""YAML as it is read and written: JSON's values alone, within limits, every refusal with its line."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api import yaml_text
from spinrun_api.yaml_text import MAX_DEPTH, MAX_FILE_NODES, MAX_NODES, InvalidYamlError, dump, load_documents, load_value

BOMB = "".join(f"a{n}: &a{n} [{','.join(['x' if n == 0 else f'*a{n - 1}'] * 10)}]\n" for n in range(9))
LONG_BOMB = "a: &a " + "x" * 1000 + "\nb: [" + "*a," * 1000 + "]\n"
TALL_BOMB = "".join(f"a{n}: &a{n} " + "[" * 60 + ("x" if n == 0 else f"*a{n - 1}") + "]" * 60 + "\n" for n in range(150))
MERGE_BOMB = "a0: &a0 {k: [x,x,x,x,x,x,x,x,x,x]}\n" + "".join(
    f"a{n}: &a{n} {{" + ",".join(f"k{i}: *a{n - 1}" for i in range(10)) + "}\n" for n in range(1, 8)
)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1e3", 1000.0),
        ("5e-7", 5e-7),
        ("1.0e+308", 1e308),
        ("+.5", 0.5),
        ("010", 8),
        ("0644", 420),
        ("0x1F", 31),
        ("-0b101", -5),
        ("1_000", 1000),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("1:30", "1:30"),
        ("22:22", "22:22"),
        ("1:30.5", "1:30.5"),
        ("0x_", "0x_"),
        ("08", "08"),
        ("_1", "_1"),
        ("=", "="),
        ("<<", "<<"),
        ("yes", True),
        ("Off", False),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("'2024-01-01'", "2024-01-01"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("!!int 5", 5),
        ("!!float 5", 5.0),
        ('{"a": ["\\u00e9\\n", 1, null, true]}', {"a": ["é\n", 1, None, True]}),
        ("{<<: {a: 1, b: 1}, b: 2}", {"a": 1, "b": 2}),
        ("{<<: [{a: 1}, {a: 2, b: 2}]}", {"a": 1, "b": 2}),
        ("[&a {x: 1}, *a]", [{"x": 1}, {"x": 1}]),
        ("[&a [&a 1, *a], *a]", [[1, 1], [1, 1]]),
        ("{&k key: 1, b: *k}", {"key": 1, "b": "key"}),
    ],
    ids=str,
)
def test_values_are_those_of_json_and_numbers_as_kubectl_reads_them(text: str, want: Any) -> None:
    value = load_value(text)

    assert value == want
    assert type(value) is type(want)
    json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [", 3, "is not YAML"),
        ("a: 1\n b: 2", 2, "is not YAML"),
        ("a:\n\tb: 1", 2, "indent with spaces, not with tabs"),
        ("a: 'x", 1, "is not YAML"),
        ('a: "\\uD800"', 1, "is not YAML"),
        ("%YAML 7.0\n--- a", 1, "is not YAML"),
        ("a: !x!y 1", 1, "is not YAML"),
        ("a: 1\nb: x\x00y", 2, "U+0000"),
        ("a: \x1b[31m", 1, "U+001B"),
        ("a: \x9b31m", 1, "U+009B"),
        ("a: \udcff", 1, "U+DCFF"),
        ("a: 1\nb: 2\na: 3", 3, "the key a is already on line 1: remove one of them"),
        ("x:\n  a: 1\n  'a': 3", 3, "the key a is already on line 2"),
        ("x: {a: 1, a: 1}", 1, "the key a is already on line 1"),
        ("- {a: 1}\n- {b: 1,\n  b: 2}", 3, "the key b is already on line 2"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a", 4, "the key << is already on line 3"),
        ("a: *b", 1, "there is no anchor &b before the alias *b"),
        ("--- &a 1\n--- *a", 2, "there is no anchor &a"),
        ("a: &a\n  b: *a", 2, "*a stands inside of &a itself"),
        ("&a [1, [*a]]", 1, "*a stands inside of &a itself"),
        ("&a {<<: *a}", 1, "*a stands inside of &a itself"),
        ("a: 1\nb: {<<: 1}", 2, "<< takes a mapping"),
        ("{<<: [{a: 1}, 2]}", 1, "<< takes a mapping"),
        ("1: a", 1, "the key 1 is not text: put it in quotes"),
        ("x: {true: a}", 1, "the key true is not text"),
        ("on: a", 1, "the key on is not text"),
        ("null: a", 1, "the key null is not text"),
        ("? \n: a", 1, "is not text"),
        ("? [a, b]\n: 1", 1, 'the key ["a", "b"] is not text'),
        ("a: &a 1\n*a : 2", 2, "the key 1 is not text"),
        ("a: 2024-01-01", 1, "2024-01-01 is a date in YAML: put it in quotes"),
        ("a: 2024-99-99", 1, "is a date"),
        ("a: 2001-12-14t21:59:43.10-05:00", 1, "is a date"),
        ("a: .inf", 1, ".inf is not a finite number"),
        ("a: [1, -.INF]", 1, "not a finite number"),
        ("a: .NaN", 1, "not a finite number"),
        ("a: 1e400", 1, "too large for a number"),
        ("a: -1.5e+999", 1, "too large for a number"),
        ("a: 9223372036854775808", 1, "out of range"),
        ("a: -9223372036854775809", 1, "out of range"),
        ("a: 0x8000000000000000", 1, "out of range"),
        ("a: 0b" + "1" * 64, 1, "out of range"),
        ("a: " + "9" * 5000, 1, "out of range"),
        ("a: !!int abc", 1, "abc does not fit its tag !!int"),
        ("a: !!float abc", 1, "abc does not fit its tag !!float"),
        ("a: !!bool maybe", 1, "does not fit its tag !!bool"),
        ("a: !!null x", 1, "does not fit its tag !!null"),
        ("a: !!float .nan", 1, "not a finite number"),
        ("a: !!timestamp 2024-01-01", 1, "the tag !!timestamp"),
        ("a: !!binary aGVsbG8=", 1, "the tag !!binary"),
        ("a: !!set {x, y}", 1, "the tag !!set"),
        ("a: !!omap [x: 1]", 1, "the tag !!omap"),
        ("a: !!pairs [x: 1]", 1, "the tag !!pairs"),
        ("a: !!map [x]", 1, "the tag !!map"),
        ("a: !!python/object/apply:os.system [id]", 1, "the tag !!python/object/apply:os.system"),
        ("a: !mine {}", 1, "the tag !mine"),
        ("? !!str {a: 1}\n: 1", 1, "the tag !!str"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusal_names_the_line_and_what_is_wrong(text: str, line: int, words: str) -> None:
    with pytest.raises(InvalidYamlError) as caught:
        list(load_documents(text))

    assert str(caught.value).startswith(f"line {line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["!!int a\n\nb", 'a: !!int "x\\nother.yaml: OK (x)"', '"a\\nb": 1\n"a\\nb": 2', "? !!null |\n  a\n  b\n: 1", "!<a\u2028b> 1"],
    ids=ascii,
)
def test_refusal_is_one_line(text: str) -> None:
    with pytest.raises(InvalidYamlError) as caught:
        list(load_documents(text))

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 10,000 values"),
        (MERGE_BOMB, "more than 10,000 values"),
        ("[" + "a," * MAX_NODES + "]", "more than 10,000 values"),
        (LONG_BOMB, "more than 1 MB"),
        ("a: " + "é" * 600_000, "more than 1 MB"),
        (TALL_BOMB, f"more than {MAX_DEPTH} mappings and lists"),
        ("[" * 1_000_000, f"more than {MAX_DEPTH} mappings and lists"),
        ("{a: " * 1000, f"more than {MAX_DEPTH} mappings and lists"),
        ("- " * 1_000_000, f"more than {MAX_DEPTH} mappings and lists"),
        ("? " * 1_000_000, f"more than {MAX_DEPTH} mappings and lists"),
        ("--- {}\n" * (MAX_FILE_NODES + 1), "the documents of this file hold more than 100,000 values"),
    ],
    ids=[
        "billion laughs",
        "billion merges",
        "long list",
        "long text",
        "long é",
        "tall",
        "lists",
        "mappings",
        "items",
        "keys",
        "documents",
    ],
)
def test_limits_stop_the_reading_before_anything_large_is_built(text: str, words: str) -> None:
    started = time.process_time()

    with pytest.raises(InvalidYamlError, match=words):
        list(load_documents(text))

    assert time.process_time() - started < 5


def test_as_much_as_the_limits_allow_is_read() -> None:
    assert len(load_value("[" + "a," * (MAX_NODES - 1) + "]")) == MAX_NODES - 1
    deepest = load_value("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert json.dumps(deepest) == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert len(load_value("x" * 1_000_000)) == 1_000_000


def test_what_an_alias_stands_for_is_a_copy() -> None:
    first, second = load_value("[&a {x: []}, *a]")
    first["x"].append(1)
    assert second == {"x": []}


def test_one_value_is_not_several_documents() -> None:
    with pytest.raises(InvalidYamlError, match="holds 2 documents"):
        load_value("1\n---\n2")


def test_parser_in_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)

    assert load_value("{a: [1, &x 2e3, *x], b: 'c'}") == {"a": [1, 2000.0, 2000.0], "b": "c"}
    for text, words in (("a: [", "line 1: is not YAML"), ('"\\uD800"', "line 1: holds half of a surrogate pair")):
        with pytest.raises(InvalidYamlError, match=words):
            load_value(text)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "1e3",
        "+.5",
        "1.5e3",
        "1_0e5",
        "1:30",
        "08",
        "=",
        "<<",
        "no",
        "2024-01-01",
        "~",
        "",
        "é\x85x",
        "a\u2028b",
        "\x7f",
        "\x9b",
        "😀",
    ],
)
def test_text_that_was_written_is_read_as_the_same_text(text: str, ascii_only: bool) -> None:
    assert load_value(dump({"a": text}, ascii_only=ascii_only)) == {"a": text}


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(yaml_text.MIN_INTEGER, yaml_text.MAX_INTEGER)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
        max_leaves=10,
    )
)
def test_what_was_written_is_read_as_the_same(value: Any) -> None:
    assert load_value(dump(value)) == value


@given(st.text(alphabet="ab&*!<>|%@-?:,[]{}#'\" \n\t01.~\x85\u2028\ufeff", max_size=60))
def test_any_text_is_read_as_json_or_refused(text: str) -> None:
    values: list[Any] = []
    with suppress(InvalidYamlError):
        values = list(load_documents(text))

    json.dumps(values, allow_nan=False)
