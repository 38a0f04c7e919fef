"""Types that several blocks of the spec share."""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, StringConstraints

from spinrun_api.base import ApiModel

# Lengths are bounded so that the API server can bound the cost of the CEL rules over them.
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=65536)]
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$", max_length=32)]
# Neither a user's name nor a query: a URL stands in logs and in the ledger, and secrets have a field of their own.
BaseUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$", max_length=1024)]
EntryPoint = Annotated[str, StringConstraints(pattern=r"^[^:\s]+:[^:\s]+$", max_length=1024)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=128)]
PodTemplate = dict[str, Any]
EgressRule = dict[str, Any]


def _number_or_text(value: object) -> object:
    """Kubernetes has no type for "number, text or truth value": what is neither whole number nor text travels as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'must be a whole number or text: write "{json.dumps(value, default=str)}", with the quotes')
    return value


EngineArgument = Annotated[int | str, BeforeValidator(_number_or_text)]
EngineArgs = dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)], EngineArgument]


class SecretKey(ApiModel):
    """One value of a Secret in the run's namespace."""

    name: DnsLabel
    """Name of the Secret."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Which of its values."""
