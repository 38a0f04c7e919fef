"""The SpinRun document: type, metadata, spec and status."""

from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from spinrun_api.base import ApiModel
from spinrun_api.json_values import checked_json
from spinrun_api.spec import SpinRunSpec
from spinrun_api.status import SpinRunStatus

GROUP: Final = "spinrun.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "spinrun.dev/v1alpha1"
KIND: Final = "SpinRun"
PLURAL = "spinruns"

# The longest child name is "<run>-trainer-<attempt>-<index>-xxxxx"; a Job's pods carry their name as a label of 63 characters.
MAX_NAME_LENGTH = 40
# A Service's name starts with a letter, and the names of a run's Services start with the run's.
NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"


class Metadata(ApiModel):
    """The part of Kubernetes' object metadata that SpinRun reads. Other fields are kept as they are."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)
    """Name of the run: lower-case letters, digits and dashes, with a letter in front."""

    namespace: str | None = Field(default=None, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    """Namespace of the run; local runs have `local`."""

    # Part of it is the name of a folder.
    uid: str | None = Field(default=None, pattern="^[A-Za-z0-9][-A-Za-z0-9]*$", max_length=128)
    """Identity of the run, given by the API server, or by `spinrun local` at the first start."""

    generation: int | None = None
    """Number of the spec's change."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels."""

    @model_validator(mode="after")
    def _is_json(self) -> Self:
        checked_json(self.model_extra or {})
        return self


class SpinRun(ApiModel):
    """An online preference-training run."""

    api_version: Literal["spinrun.dev/v1alpha1"] = API_VERSION
    """Version of this document's schema."""

    kind: Literal["SpinRun"] = KIND
    """Kind of this document."""

    metadata: Metadata
    """Name, namespace and identity."""

    spec: SpinRunSpec
    """What to train, on what, and how."""

    status: SpinRunStatus | None = None
    """What the operator saw last."""

    def ledger_name(self) -> str:
        """The run's folder on the volume, relative to the volume's root: <namespace>/<name>-<uid8>.

        Raises:
            ValueError: The run has no uid yet.
        """
        if self.metadata.uid is None:
            raise ValueError(f"SpinRun {self.metadata.name} has no metadata.uid yet, so it has no ledger")
        return f"{self.metadata.namespace or 'default'}/{self.metadata.name}-{self.metadata.uid[:8]}"
