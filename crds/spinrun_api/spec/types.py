"""Types that several blocks of the spec share."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from spinrun_api.base import ApiModel
from spinrun_api.json_values import checked_json

ONE_LINE = r"^[^\p{Cc}\x{2028}-\x{202e}\x{2066}-\x{2069}]*$"
"""Text without what commands a terminal, ends a line or reorders one. Names and paths stand in logs and tables."""
LINES = r"^[\t\n\r\P{Cc}]*$"
"""The same of many lines, for templates. Both are written for the regular expressions of the API server and of pydantic."""
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_NOT_IN_LINES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _without(forbidden: re.Pattern[str]) -> AfterValidator:
    def check(text: str) -> str:
        if found := forbidden.search(text):
            raise ValueError(f"holds the character U+{ord(found[0]):04X}, which is not for a text of this kind: remove it")
        return text

    return AfterValidator(check)


# Lengths are bounded so that the API server can bound the cost of the CEL rules over them.
Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    _without(_NOT_IN_A_LINE),
    Field(json_schema_extra={"pattern": ONE_LINE}),
]
LongText = Annotated[
    str, StringConstraints(min_length=1, max_length=65536), _without(_NOT_IN_LINES), Field(json_schema_extra={"pattern": LINES})
]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$", max_length=32)]
# Neither a user's name nor a query: a URL stands in logs and in the ledger, and secrets have a field of their own.
BaseUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^/?#@\s\p{Cc}]+(/[^?#@\s\p{Cc}]*)?$", max_length=1024)]
EntryPoint = Annotated[str, StringConstraints(pattern=r"^[^:\s\p{Cc}]+:[^:\s\p{Cc}]+$", max_length=1024)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=128)]


PodTemplate = Annotated[dict[str, Any], AfterValidator(checked_json)]
EgressRule = Annotated[dict[str, Any], AfterValidator(checked_json)]


class SecretKey(ApiModel):
    """One value of a Secret in the run's namespace."""

    name: DnsLabel
    """Name of the Secret."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Which of its values."""
