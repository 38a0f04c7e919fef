"""What every model of the API shares: names, strictness, and descriptions taken from docstrings."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of a document: camelCase outside, snake_case inside, unknown fields refused.

    The docstring below a field becomes its description in the CRD and in `kubectl explain`.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def to_document(self) -> dict[str, object]:
        """The wire form: camelCase, JSON types, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Record(ApiModel):
    """A document that one of our processes writes and another reads.

    Unknown fields are ignored: during an upgrade the writer may be newer than the reader.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
