"""What every model of the API shares: names, strictness, descriptions taken from docstrings, and rules over several fields."""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.alias_generators import to_camel

Check = TypeVar("Check", bound=Callable[..., bool])


@dataclass(frozen=True)
class Rule:
    """A rule over several fields of a model, once for Python and once for the API server."""

    cel: str
    """The rule in the Common Expression Language; `self` is the object."""

    message: str
    """What is wrong and what to do, when the rule does not hold."""


def rule(*, cel: str, message: str) -> Callable[[Check], Check]:
    """Makes a method that says whether a model is right into a rule of the model, here and, as `cel`, in the CRD."""

    def mark(check: Check) -> Check:
        vars(check)["__rule__"] = Rule(cel, message)
        return check

    return mark


class ApiModel(BaseModel):
    """A part of a document: camelCase outside, snake_case inside, unknown fields refused, no value of another type taken.

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

    rules: ClassVar[dict[str, Rule]] = {}
    """The rules of this model in the order of their definition, by the name of the method that checks them."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        marked = {name: vars(method) for name, method in vars(cls).items() if isinstance(method, FunctionType)}
        cls.rules = cls.rules | {name: marks["__rule__"] for name, marks in marked.items() if "__rule__" in marks}

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        broken = [rule.message for name, rule in self.rules.items() if not getattr(self, name)()]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def to_document(self) -> dict[str, Any]:
        """The wire form: camelCase, JSON types, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Record(ApiModel):
    """A document that one of our processes writes and another reads.

    Unknown fields are ignored: during an upgrade the writer may be newer than the reader.
    """

    # A loss may be NaN. JSON has no such number: it travels as the string "NaN", which a float field reads back.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=False, ser_json_inf_nan="strings")


def first_problem(error: ValidationError) -> str:
    """The first of the problems that a model has found, in one line: the field, if it is about one, and what is wrong."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {details['msg']}" if where else details["msg"]
