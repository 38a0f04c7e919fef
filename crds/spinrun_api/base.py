"""What every model of the API shares: names, strictness, descriptions taken from docstrings, and rules over several fields."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

Check = TypeVar("Check", bound=Callable[..., bool])


@dataclass(frozen=True)
class Rule:
    """A rule over several fields, as the API server checks it."""

    cel: str
    """The rule in the Common Expression Language; `self` is the object."""

    message: str
    """What is wrong and what to do, when the rule does not hold."""


@dataclass(frozen=True)
class ModelRule(Rule):
    """A rule over several fields of a model, once for the API server and once for Python."""

    holds: Callable[[Any], bool]
    """Whether a model keeps the rule."""

    culprit: Callable[[Any], str] | None = None
    """What of a model breaks the rule, for Python's message: that of the API server cannot name it."""

    def refusal(self, model: object) -> str:
        """What is wrong with a model that breaks the rule."""
        return self.message if self.culprit is None else f"{self.message} ({self.culprit(model)})"


def rule(*, cel: str, message: str, culprit: Callable[[Any], str] | None = None) -> Callable[[Check], Check]:
    """Make a method a rule of its model.

    Args:
        cel: The rule as the CRD has it. The method says the same in Python: it returns whether the model keeps the rule.
        message: What is wrong and what to do, when the rule does not hold.
        culprit: See `ModelRule`.
    """

    def mark(check: Check) -> Check:
        vars(check)["__rule__"] = ModelRule(cel, message, check, culprit)
        return check

    return mark


class ApiModel(BaseModel):
    """A part of a document: camelCase outside, snake_case inside, unknown fields and values of another type refused.

    The docstring below a field becomes its description in the CRD and in `kubectl explain`.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    rules: ClassVar[dict[str, ModelRule]] = {}
    """The rules of this model in the order of their definition, each under the name of its method."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        marked = {name: vars(method) for name, method in vars(cls).items() if isinstance(method, FunctionType)}
        cls.rules = cls.rules | {name: marks["__rule__"] for name, marks in marked.items() if "__rule__" in marks}

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        broken = [rule.refusal(self) for rule in self.rules.values() if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def to_document(self) -> dict[str, Any]:
        """The wire form: camelCase, JSON types, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def models_in(annotation: object) -> Iterator[type[ApiModel]]:
    """The models that a type mentions, as in list[Block] and Block | None."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


class Record(ApiModel):
    """A document that one of our processes writes and another reads.

    Unknown fields are ignored: during an upgrade the writer may be newer than the reader.
    """

    # A loss may be NaN, which JSON does not have: it travels as the string "NaN", which a float field reads back.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=False, ser_json_inf_nan="strings")

    def to_document(self) -> dict[str, Any]:
        """The wire form: camelCase, JSON types, absent fields left out."""
        # Not by model_dump, which leaves NaN as a number.
        return json.loads(self.model_dump_json(by_alias=True, exclude_none=True))


LARGEST_COUNT = 2**53
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""A number of steps, windows and the like in a record: what every reader can calculate with."""


def first_problem(error: ValidationError) -> str:
    """The first of the problems that a model has found, in one line: the field, if it is about one, and what is wrong."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {details['msg']}" if where else details["msg"]
