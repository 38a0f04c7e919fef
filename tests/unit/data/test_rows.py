"""Columns and the fields inside them, and values as text."""

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_worker.data.rows import is_missing, require_column, text_of, value_at
from spinrun_worker.data.sources import MemoryTable
from spinrun_worker.errors import ConfigurationError

ROW: dict[str, Any] = {
    "prompt": "2+2?",
    "reward_model": {"ground_truth": "4", "style": {"kind": "rule"}, "a.b": "dotted"},
    "meta.level": "a column with a dot",
    "meta": {"level": "a field", "tags.all": {"first": "x"}, "tags": {"all": {"first": "y"}}},
    "answers": ["four", {"text": "4"}, ["IV"]],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("prompt", "2+2?"),
        ("reward_model.ground_truth", "4"),
        ("reward_model.style.kind", "rule"),
        ("reward_model.a.b", "dotted"),
        ("meta.level", "a column with a dot"),
        ("meta.tags.all.first", "x"),
        ("answers.0", "four"),
        ("answers.1.text", "4"),
        ("answers.-1.0", "IV"),
        ("answers.3", None),
        ("answers.-4", None),
        ("answers.first", None),
        ("answers.99999999999999999999", None),
        ("answers.", None),
        ("prompt.0", None),
        ("prompt.__class__", None),
        ("reward_model.", None),
        ("nothing.at.all", None),
        ("", None),
        (".", None),
    ],
)
def test_a_dot_leads_into_a_column_unless_a_column_has_that_name(path: str, want: str | None):
    assert value_at(ROW, path) == want


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("promt", "there is no column 'promt'. Did you mean prompt? The columns are: prompt, reward_model"),
        (
            "reward_model.ground_thruth",
            "'reward_model.ground_thruth'. Did you mean reward_model.ground_truth? The",
        ),
        ("reward_model.style.knid", "Did you mean reward_model.style.kind?"),
        ("answers.7", "there is no column 'answers.7'."),
        ("nobody.knows", "there is no column 'nobody.knows'."),
        (".", "there is no column '.'."),
        ("reward_model" + ".x" * 500, "there is no column 'reward_model.x.x"),
    ],
)
def test_a_column_that_no_row_has_is_named_with_those_that_there_are(path: str, want: str):
    with pytest.raises(ConfigurationError) as raised:
        require_column(path, MemoryTable([ROW]), field="data.prompts.answerColumn")
    assert str(raised.value).startswith("data.prompts.answerColumn: there is no column")
    assert want in str(raised.value)


def test_one_row_that_has_the_field_is_enough():
    rows: list[dict[str, Any]] = [{"a": None}] * 3000
    require_column("a.b", MemoryTable([*rows, {"a": {"b": None}}]), field="x")
    with pytest.raises(ConfigurationError):
        require_column("a.b", MemoryTable(rows), field="x")


class NotATime:
    """Unlike itself, as pandas' NaT."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "NotATime"

    def __eq__(self, other: object) -> bool:
        return False


@pytest.mark.parametrize("value", [None, float("nan"), -float("nan"), Decimal("NaN"), NotATime()], ids=repr)
def test_what_stands_for_no_value_is_no_text(value: object):
    assert is_missing(value)
    assert text_of(value) == ""


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (42, "42"),
        (42.0, "42"),
        (-0.0, "0"),
        (-7.0, "-7"),
        (0.1, "0.1"),
        (2.5, "2.5"),
        (1e15, "1000000000000000"),
        (1e22, "1e+22"),
        (float("inf"), "inf"),
        (True, "True"),
        (Decimal("42.50"), "42.50"),
        (b"zw\xc3\xb6lf", "zwölf"),
        (date(2026, 1, 2), "2026-01-02"),
        ("nan", "nan"),
        ("None", "None"),
        ("", ""),
        ("42.0", "42.0"),
    ],
)
def test_values_are_read_as_their_author_wrote_them(value: object, want: str):
    assert not is_missing(value)
    assert text_of(value) == want


@pytest.mark.parametrize("value", [[], ["a"], {}, {"a": 1}, b"\xff"], ids=repr)
def test_what_is_not_text_is_refused(value: object):
    with pytest.raises(ValueError):
        text_of(value)


@given(number=st.integers(-(2**53), 2**53))
def test_a_whole_number_is_the_same_text_as_an_integer_and_as_a_float(number: int):
    assert text_of(float(number)) == text_of(number) == str(number)


names = st.text("ab.0-1", max_size=4)
values = st.recursive(
    st.none() | st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)


@given(row=st.dictionaries(names, values, max_size=4), path=st.text("ab.0-1", max_size=12))
def test_any_path_into_any_row_finds_a_value_or_none(row: dict[str, Any], path: str):
    found = value_at(row, path)
    if path in row:
        assert found == row[path]
    try:
        require_column(path, MemoryTable([row]), field="x")
    except ConfigurationError:
        assert found is None
