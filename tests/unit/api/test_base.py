"""What models have in common."""

import pytest
from pydantic import BaseModel, Field, ValidationError

from spinrun_api.base import first_problem
from spinrun_api.spec import SpinRunSpec


class Inner(BaseModel):
    count: int = Field(ge=1)


class Outer(BaseModel):
    inner: list[Inner]
    name: str


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"inner": [{"count": 1}, {"count": 0}], "name": 7}', "inner.1.count: Input should be greater than or equal to 1"),
        ("[]", "Input should be an object"),
        ("{", "Invalid JSON: EOF while parsing an object at line 1 column 1"),
    ],
    ids=["first-of-several", "about-no-field", "not-json"],
)
def test_first_problem_names_the_field_if_it_is_about_one(text: str, want: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate_json(text)
    assert first_problem(raised.value) == want


@pytest.mark.parametrize(
    ("sources", "preference", "want"),
    [
        (
            [{"source": "a/b"}, {"source": "a/c"}, {"source": "a/b", "weight": 2.0}],
            {"kind": "python", "entryPoint": "a:b"},
            r"\(data\.prompts\.sources\[2\] is data\.prompts\.sources\[0\]\)",
        ),
        ([{"source": "arithmetic"}, {"source": "a/c"}], {"kind": "exact"}, r"of every source \(data\.prompts\.sources\[1\]\)"),
    ],
    ids=["repeated", "without-answers"],
)
def test_a_rule_names_what_breaks_it(sources: list[object], preference: dict[str, str], want: str) -> None:
    spec = {"model": {"source": "m"}, "data": {"prompts": {"sources": sources}}, "preference": {"rule": preference}}
    with pytest.raises(ValidationError, match=want):
        SpinRunSpec.model_validate(spec)
