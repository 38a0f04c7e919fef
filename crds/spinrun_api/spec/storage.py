"""The block `storage`."""

from typing import Literal

from pydantic import Field

from spinrun_api.base import ApiModel, rule
from spinrun_api.spec.types import DnsLabel, Quantity


class Storage(ApiModel):
    """The volume that holds the ledger. `spinrun local` uses a plain directory instead."""

    claim_name: DnsLabel | None = None
    """An existing claim. It must be ReadWriteMany unless every pod of the run lands on one node."""

    size: Quantity | None = None
    """Size of the claim that the operator makes."""

    storage_class_name: DnsLabel | None = None
    """Class of the claim that the operator makes. Absent: the cluster's default."""

    access_modes: list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]] = Field(
        default_factory=lambda: ["ReadWriteMany"], min_length=1, max_length=3
    )
    """Access modes of the claim that the operator makes."""

    retain: bool = True
    """Whether the claim that the operator makes outlives the run."""

    @rule(cel="has(self.claimName) != has(self.size)", message="exactly one of claimName and size must be set")
    def _claim_or_size(self) -> bool:
        return (self.claim_name is None) != (self.size is None)

    @rule(
        cel="!(has(self.claimName) && has(self.storageClassName))",
        message="storageClassName is for a new claim: remove it, or replace claimName by size",
    )
    def _class_is_for_a_new_claim(self) -> bool:
        return self.claim_name is None or self.storage_class_name is None
