"""The block `telemetry`."""

from typing import Annotated

from pydantic import StringConstraints

from spinrun_api.base import ApiModel
from spinrun_api.spec.types import SecretKey, Text


class Wandb(ApiModel):
    """Weights & Biases.

    Set anything else through its own environment variables, such as WANDB_MODE, WANDB_TAGS or WANDB_BASE_URL, in
    `trainer.template`.
    """

    project: Text
    """Project that the run is shown in, under its own name."""

    entity: Text | None = None
    """User or team that the project belongs to. Absent: the default one of the key's owner."""

    secret_ref: SecretKey | None = None
    """The Secret with the API key. `spinrun local` takes the key from the environment variable WANDB_API_KEY or from
    `wandb login` instead. Absent: the environment's, in `trainer.template`."""


class Tensorboard(ApiModel):
    """Event files for TensorBoard."""

    directory: Annotated[str, StringConstraints(pattern=r"^/\P{Cc}*$", max_length=1024)] | None = None
    """Absolute path of a folder, which the trainer can write to, with the event files of many runs, each in a folder
    NAMESPACE/NAME-UID below it. Absent: the folder `tensorboard` of the run's ledger."""


class Mlflow(ApiModel):
    """MLflow.

    Set anything else through its own environment variables, such as MLFLOW_TRACKING_USERNAME, in `trainer.template`.
    """

    # Neither a user's name nor a query, as in a BaseUrl.
    tracking_uri: Annotated[str, StringConstraints(pattern=r"^[^@?#\s\p{Cc}]+$", max_length=1024)] | None = None
    """Where MLflow's tracking server is, such as http://mlflow:5000, or what else MLflow takes, such as databricks. Absent: what
    the environment variable MLFLOW_TRACKING_URI says, else the folder `mlflow` of the run's ledger."""

    experiment: Text = "spinrun"
    """Experiment that the run is shown in, under its own name."""

    secret_ref: SecretKey | None = None
    """The Secret with the bearer token of the server. `spinrun local` takes it from the environment variable
    MLFLOW_TRACKING_TOKEN instead. Absent: no token is sent."""


class Telemetry(ApiModel):
    """Experiment trackers that also get the figures and settings of the run.

    One that cannot be reached neither stops nor slows a run.
    """

    wandb: Wandb | None = None
    """Weights & Biases. Absent: nothing goes there."""

    tensorboard: Tensorboard | None = None
    """Event files for TensorBoard; {} is enough. Absent: none are written."""

    mlflow: Mlflow | None = None
    """MLflow; {} is enough. Absent: nothing goes there."""
