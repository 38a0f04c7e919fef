"""The block `network`: whom the pods of a run may talk to."""

from pydantic import Field

from spinrun_api.base import ApiModel
from spinrun_api.spec.types import EgressRule


class Network(ApiModel):
    """Whom the pods of a run may talk to, where the cluster's network enforces NetworkPolicies."""

    egress: list[EgressRule] | None = Field(default=None, max_length=64)
    """Where the run's pods may connect to, beside name servers (port 53) and each other: rules as in a NetworkPolicy, with `to`
    and `ports`. Name here the Hub, the judge and the trackers that the run needs; [] allows nothing more. Absent: anywhere."""
