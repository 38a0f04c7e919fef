"""What models have in common."""

import pytest
from pydantic import BaseModel, Field, ValidationError

from spinrun_api.base import first_problem


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
