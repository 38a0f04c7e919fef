"""Trackers through the real trainer: they show what the ledger says, also over attempts, and nothing they do touches the run."""

import json
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from spinrun_worker.ledger import read_metrics
from spinrun_worker.trainer.reporting.trackers.tracker import figures
from support.trainer_process import UID, Attempts
from unit.trainer.reporting.trackers.reading import tensorboard_scalars, wandb_files

KEY = "0123456789abcdef0123456789abcdef01234567"
ALL: dict[str, Any] = {
    "wandb": {"project": "sums", "secretRef": {"name": "trackers", "key": "wandb"}},
    "tensorboard": {},
    "mlflow": {},
}


@pytest.fixture
def attempts(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for those who read
    attempts.environment.update(
        {"NO_PROXY": "127.0.0.1", "WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "HOME": str(attempts.folder / "home")}
    )
    return attempts


@pytest.fixture
def silent_server() -> Generator[str]:
    """URL of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def mlflow_run(ledger: Path) -> tuple[MlflowClient, Run]:
    """The one run in a ledger's folder of MLflow."""
    client = MlflowClient((ledger / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("spinrun")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def curves(ledger: Path) -> dict[str, dict[int, float]]:
    """What the ledger says: figures by name and step."""
    found: dict[str, dict[int, float]] = {}
    for line in read_metrics(ledger / "metrics.jsonl"):
        for name, value in figures(line).items():
            found.setdefault(name, {})[line.step] = value
    return found


def test_all_trackers_show_what_the_ledger_says_of_all_attempts(attempts: Attempts, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    assert attempts.run(ledger, telemetry=ALL, duration={"windows": 1}) == 0, attempts.log(1).read_text()
    assert attempts.run(ledger, attempt=2, telemetry=ALL) == 0, attempts.log(2).read_text()

    want = curves(ledger)
    assert {"loss", "rewards/margins", "window/reward/mean", "evaluation/accuracy"} <= want.keys()
    scalars = tensorboard_scalars(ledger / "tensorboard")
    # TensorBoard keeps numbers of four bytes.
    assert {name: dict(points) for name, points in scalars.items()} == {
        name: {step: pytest.approx(value, rel=1e-6) for step, value in points.items()} for name, points in want.items()
    }

    client, run = mlflow_run(ledger)
    assert (run.info.status, run.data.tags["spinrun.uid"], run.data.tags["spinrun.attempt"]) == ("FINISHED", UID, "2")
    history = {name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} for name in want}
    assert history == want

    first, second = wandb_files(ledger)
    assert first.id == second.id == UID
    rows = [row for file in (first, second) for row in file.rows]
    assert {name: {row["step"]: row[name] for row in rows if name in row} for name in want} == want
    assert second.exit_code == 0
    assert second.config["trainer"]["learningRate"] == 1e-3
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_trackers_continue_in_the_same_place_after_an_attempt_that_was_killed(attempts: Attempts, tmp_path: Path) -> None:
    ledger, telemetry = tmp_path / "ledger", {"tensorboard": {}, "mlflow": {}}
    # Each attempt writes dozens of files; this one is within the second window.
    assert attempts.run(ledger, kill_at=40, telemetry=telemetry) == -9, attempts.log(1).read_text()
    assert attempts.run(ledger, attempt=2, telemetry=telemetry) == 0, attempts.log(2).read_text()

    want = curves(ledger)["loss"]
    # What was on its way to a tracker when the trainer was killed may be missing there; nothing is wrong, and nothing twice.
    points = tensorboard_scalars(ledger / "tensorboard")["loss"]
    assert [step for step, _ in points] == sorted(dict(points))
    assert all(value == pytest.approx(want[step], rel=1e-6) for step, value in points)
    assert points[-1][0] == max(want)
    client, run = mlflow_run(ledger)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert all(point.value == want[point.step] for point in history)


def test_the_same_run_with_and_without_trackers(attempts: Attempts, tmp_path: Path) -> None:
    without, tracked = tmp_path / "without", tmp_path / "tracked"
    assert attempts.run(without) == 0
    assert attempts.run(tracked, attempt=2, telemetry=ALL) == 0
    weights = [ledger / "weights" / "v000002" / "MANIFEST.json" for ledger in (without, tracked)]
    assert len({json.loads(manifest.read_text())["digest"] for manifest in weights}) == 1


def test_a_server_that_never_answers_costs_a_run_seconds_at_its_end_and_nothing_else(
    attempts: Attempts, silent_server: str, tmp_path: Path
) -> None:
    attempts.environment.update({"WANDB_MODE": "online", "WANDB_BASE_URL": silent_server})
    telemetry = ALL | {"mlflow": {"trackingUri": silent_server}}
    began = time.monotonic()
    assert attempts.run(tmp_path / "ledger", telemetry=telemetry) == 0, attempts.log(1).read_text()
    assert time.monotonic() - began < 90
    log = attempts.log(1).read_text()
    assert "mlflow has not finished within 30 s and is abandoned" in log
    assert "wandb has not finished within 30 s and is abandoned" in log
    assert json.loads(attempts.termination_message(1).read_text())["result"] == "Complete"
    assert tensorboard_scalars(tmp_path / "ledger" / "tensorboard")["loss"]


def test_a_server_that_is_not_there_is_said_once(attempts: Attempts, tmp_path: Path) -> None:
    attempts.environment.update({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    assert attempts.run(tmp_path / "ledger", telemetry={"mlflow": {"trackingUri": "http://127.0.0.1:9"}}) == 0
    log = attempts.log(1).read_text()
    assert log.count("mlflow does not get all figures") == 1
    assert "mlflow lacks 9 of 9 lines" in log
