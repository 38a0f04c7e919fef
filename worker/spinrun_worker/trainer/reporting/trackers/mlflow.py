"""MLflow: a tracking server, or a folder."""

import os
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.trainer.reporting.trackers.tracker import AttemptResult, figures, flattened, run_of, settings

UID_TAG = "spinrun.uid"
"""Tag by which a later attempt finds the run; MLflow assigns ids of its own."""

STATUS: dict[AttemptResult, str] = {"complete": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}
MAX_PARAM_LENGTH = 500
"""Longest value of a parameter that every version of a server accepts."""
MAX_PARAMS = 100
"""Maximum number of parameters in a request."""


class MlflowTracker:
    """A run of an experiment, which all attempts share."""

    def __init__(self, record: RunRecord, ledger: Path, first: MetricsLine) -> None:
        """Find the run or create it.

        Args:
            record: How the run was made.
            ledger: The run's folder.
            first: The first line to show.

        Raises:
            MlflowException: The server refuses or does not answer.
        """
        run = run_of(record)
        spec = run.spec.telemetry.mlflow
        assert spec is not None
        uri = spec.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or (ledger / "mlflow").absolute().as_uri()
        # MLflow no longer develops its file store, and wants it to be chosen explicitly. Its databases are for a server only.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(spec.experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(spec.experiment)
        found = self._client.search_runs([experiment_id], filter_string=f"tags.`{UID_TAG}` = '{run.metadata.uid}'")
        mine = found[0] if found else self._create(experiment_id, record, first)
        self._id = mine.info.run_id
        self.place = f"{uri}, experiment {spec.experiment}, run {self._id}"
        self._client.update_run(self._id, status="RUNNING")

    def _create(self, experiment_id: str, record: RunRecord, first: MetricsLine) -> Run:
        run = run_of(record)
        tags = {MLFLOW_RUN_NAME: run.metadata.name, UID_TAG: run.metadata.uid, "spinrun.namespace": run.metadata.namespace}
        made = self._client.create_run(
            experiment_id,
            start_time=int(first.time * 1000),
            tags={name: value for name, value in tags.items() if value is not None},
        )
        params = [Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in flattened(settings(record))]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[start : start + MAX_PARAMS])
        return made

    def write(self, line: MetricsLine) -> None:
        """Log a metric for each figure, over the steps done."""
        milliseconds = int(line.time * 1000)
        metrics = [Metric(name, value, milliseconds, line.step) for name, value in figures(line).items()]
        self._client.log_batch(self._id, metrics=metrics, tags=[RunTag("spinrun.attempt", str(line.attempt))])

    def close(self, result: AttemptResult) -> None:
        """Set how the attempt ended; the next one reopens the run."""
        self._client.set_terminated(self._id, status=STATUS[result])
