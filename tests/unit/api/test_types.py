"""Texts and templates of a spec, also from callers that have no YAML: Python's own values."""

import copy
import datetime
import math
from typing import Any

import pytest

from spinrun_api.documents import InvalidDocumentError, parse_run
from unit.api.invalid_runs import MINIMAL

Json = dict[str, Any]


def with_template(template: Any) -> Json:
    """A run with a pod template of its trainer."""
    document = copy.deepcopy(MINIMAL)
    document["spec"]["trainer"] = {"template": template}
    return document


def nested(depth: int) -> list[Any]:
    """Lists inside one another."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (math.nan, "spec.containers[0].x"),
        (math.inf, "inf is not a finite number"),
        (2**63, "out of range"),
        (10**5000, "out of range"),
        (datetime.date(2026, 1, 1), "date is not a type of JSON"),
        (b"bytes", "bytes is not a type of JSON"),
        ((1, 2), "tuple is not a type of JSON"),
        ({1: 2}, "a key that is not text"),
        ({"\ud83d": 2}, "a key that is not text"),
        ("\ud83d", "surrogate"),
        (nested(200), "nested deeper than 90 levels"),
        (nested(100_000), "nested deeper than 90 levels"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_template_is_json(value: Any, place: str) -> None:
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(with_template({"spec": {"containers": [{"x": value}]}}))
    within = "" if place.startswith("nested") else " spec.containers[0].x"
    assert str(raised.value.problems[0]).startswith(f"spec.trainer.template:{within}")
    assert place in str(raised.value)


def test_template_that_is_json_stays_as_it_is() -> None:
    template = {"spec": {"a": [1, 2.5, None, True, "\u202e\x1b", {}], "b": {"c": nested(80)}}}
    assert parse_run(with_template(template)).spec.trainer.template == template


@pytest.mark.parametrize("value", [nested(100_000), 10**5000, {"a": nested(5000)}], ids=["lists", "number", "mapping"])
def test_value_too_large_to_show_is_refused_with_its_place(value: Any) -> None:
    document = copy.deepcopy(MINIMAL)
    document["spec"]["model"]["source"] = value
    with pytest.raises(InvalidDocumentError, match=r"spec\.model\.source: .*(got a int too large|nested deeper)"):
        parse_run(document)


def test_what_is_kept_of_metadata_is_json() -> None:
    document = copy.deepcopy(MINIMAL)
    document["metadata"]["managedFields"] = [{"time": datetime.date(2026, 1, 1)}]
    with pytest.raises(InvalidDocumentError, match=r"metadata: managedFields\[0\].time: date is not a type of JSON"):
        parse_run(document)


@pytest.mark.parametrize(
    "value", [None, [], {}, nested(50_000), {"a": nested(50_000)}, b"8"], ids=lambda value: type(value).__name__
)
def test_engine_argument_of_another_type_is_refused(value: Any) -> None:
    document = copy.deepcopy(MINIMAL)
    document["spec"]["rollout"] = {"engineArgs": {"max-num-seqs": value}}
    with pytest.raises(InvalidDocumentError, match=r"engineArgs(\.max-num-seqs: must be a whole number|: is nested deeper)"):
        parse_run(document)


def test_templates_have_lines_and_tabs_and_any_script() -> None:
    document = copy.deepcopy(MINIMAL)
    text = "{% for m in messages %}\n\t{{ m }}\r\n{% endfor %} مرحبا 👩‍🔬 \u202e"
    document["spec"]["model"] |= {"chatTemplate": text, "source": "org/modèle 👩‍🔬 مرحبا"}
    assert parse_run(document).spec.model.chat_template == text


@pytest.mark.parametrize("metadata", [{"namespace": "../x"}, {"namespace": "\x1b"}, {"uid": "../../.."}, {"uid": ""}])
def test_what_names_a_folder_is_a_plain_name(metadata: Json) -> None:
    document = copy.deepcopy(MINIMAL)
    document["metadata"] |= metadata
    with pytest.raises(InvalidDocumentError, match=f"metadata.{next(iter(metadata))}"):
        parse_run(document)
