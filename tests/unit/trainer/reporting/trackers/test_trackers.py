"""Each tracker, as the library that shows it to people reads it back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from spinrun_api.documents import parse_run
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_worker.errors import Preempted
from spinrun_worker.trainer.reporting.trackers import Follower, following
from spinrun_worker.trainer.reporting.trackers.tracker import settings
from unit.trainer.reporting.trackers.reading import WandbFile, tensorboard_scalars, tensorboard_text, wandb_files

Json = dict[str, Any]

UID = "01234567-89ab-cdef-0123-456789abcdef"
KEY = "0123456789abcdef0123456789abcdef01234567"
PASSWORD = "of-a-sidecar"


def record(telemetry: Json) -> RunRecord:
    run = parse_run(
        {
            "apiVersion": "spinrun.dev/v1alpha1",
            "kind": "SpinRun",
            "metadata": {"name": "demo", "namespace": "team", "uid": UID},
            "spec": {
                "model": {"source": "org/model"},
                "data": {"prompts": {"source": "arithmetic"}},
                "preference": {"rule": {"kind": "lastNumber"}},
                "trainer": {"template": {"spec": {"containers": [{"name": "x", "env": [{"name": "P", "value": PASSWORD}]}]}}},
                "storage": {"size": "1Gi"},
                "telemetry": telemetry,
            },
        }
    )
    return RunRecord(
        run=run.to_document(),
        versions={"torch": "2"},
        machine={"cores": 2},
        compute_dtype="float32",
        published_dtype="float32",
        attempt=1,
        world_size=1,
    )


def line(event: str, step: int, attempt: int = 1, **values: float) -> MetricsLine:
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return MetricsLine.model_validate(
        {"event": event, "attempt": attempt, "time": 1.7e9 + step, "window": step // 2, "step": step, "version": 0}
        | {"values": named}
    )


FIRST = [
    line("evaluation", 0, accuracy=0.25),
    line("step", 1, loss=0.75, rewards__margins=0.5),
    line("step", 2, loss=0.5, rewards__margins=math.nan),
    line("window", 2, ties=3.0),
    line("evaluation", 2, accuracy=0.5),
    line("step", 3, loss=0.375, rewards__margins=0.25),
]
"""An attempt that ends after a step without a checkpoint …"""

SECOND = [
    line("evaluation", 2, 2, accuracy=0.5),
    line("step", 3, 2, loss=0.125, rewards__margins=1.0),
    line("step", 4, 2, loss=0.0625, rewards__margins=2.0),
    line("window", 4, 2, ties=1.0),
    line("evaluation", 4, 2, accuracy=0.375),
]
"""… and the next one, which repeats it."""


def track(ledger: Path, telemetry: Json, lines: list[MetricsLine], error: type[Exception] | None = None) -> Follower:
    """An attempt that says these lines, and ends so."""
    ledger.mkdir(exist_ok=True)
    follower: Follower | None = None
    try:
        with following(record(telemetry), ledger) as followers:
            (follower,) = followers
            for each in lines:
                follower.offer(each)
            if error is not None:
                raise error
    except (Preempted, ValueError) as raised:
        assert type(raised) is error  # noqa: PT017
    assert follower is not None
    assert follower.lines == {"written": len(lines), "failed": 0, "dropped": 0}
    return follower


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def column(file: WandbFile, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in file.rows if name in row]


def test_a_run_on_weights_and_biases(offline: None, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    track(ledger, {"wandb": {"project": "summaries", "entity": "a-team"}}, FIRST)
    (file,) = wandb_files(ledger)
    assert (file.project, file.entity, file.id, file.name) == ("summaries", "a-team", UID, "demo")
    assert column(file, "loss") == [(1, 0.75), (2, 0.5), (3, 0.375)]
    assert column(file, "evaluation/accuracy") == [(0, 0.25), (2, 0.5)]
    assert column(file, "window/ties") == [(2, 3.0)]
    assert [row["window"] for row in file.rows] == [0, 0, 1, 1, 1, 1]
    assert file.axes["*"] == "step"
    assert file.config["model"]["source"] == "org/model"
    assert file.config["trainer"]["learningRate"] == 5e-7
    assert file.config["versions"] == {"torch": "2"}
    assert file.exit_code == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_a_resumed_run_is_the_same_on_weights_and_biases(offline: None, tmp_path: Path) -> None:
    ledger, telemetry = tmp_path / "ledger", {"wandb": {"project": "summaries"}}
    track(ledger, telemetry, FIRST, Preempted)
    track(ledger, telemetry, SECOND)
    files = wandb_files(ledger)
    assert [file.id for file in files] == [UID, UID]
    assert [file.exit_code for file in files] == [1, 0]
    # What is repeated is not lost, as it would be on wandb's own axis.
    assert column(files[1], "loss") == [(3, 0.125), (4, 0.0625)]


def test_curves_and_settings_in_tensorboard(tmp_path: Path) -> None:
    track(tmp_path / "ledger", {"tensorboard": {}}, FIRST)
    folder = tmp_path / "ledger" / "tensorboard"
    scalars = tensorboard_scalars(folder)
    assert scalars["loss"] == [(1, 0.75), (2, 0.5), (3, 0.375)]
    assert scalars["evaluation/accuracy"] == [(0, 0.25), (2, 0.5)]
    assert scalars["window/ties"] == [(2, 3.0)]
    assert [step for step, _ in scalars["rewards/margins"]] == [1, 2, 3]
    assert "source: org/model" in tensorboard_text(folder, "settings")


def test_a_resumed_run_replaces_the_steps_that_it_repeats_in_tensorboard(tmp_path: Path) -> None:
    track(tmp_path / "ledger", {"tensorboard": {}}, FIRST, Preempted)
    track(tmp_path / "ledger", {"tensorboard": {}}, SECOND)
    scalars = tensorboard_scalars(tmp_path / "ledger" / "tensorboard")
    assert scalars["loss"] == [(1, 0.75), (2, 0.5), (3, 0.125), (4, 0.0625)]
    assert scalars["window/ties"] == [(2, 3.0), (4, 1.0)]
    assert [step for step, _ in scalars["evaluation/accuracy"]] == [0, 2, 2, 4]


def test_runs_that_share_a_folder_of_tensorboard_have_one_each_in_it(tmp_path: Path) -> None:
    track(tmp_path / "ledger", {"tensorboard": {"directory": str(tmp_path / "all")}}, FIRST)
    assert tensorboard_scalars(tmp_path / "all" / "team" / "demo-01234567")["loss"][0] == (1, 0.75)
    assert not (tmp_path / "ledger" / "tensorboard").exists()


def test_a_run_in_mlflow_and_the_next_attempt_in_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track(tmp_path / "ledger", {"mlflow": {"experiment": "sums"}}, FIRST, ValueError)
    client = MlflowClient((tmp_path / "ledger" / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("sums")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.info.run_name == "demo"
    assert run.data.params["model.source"] == "org/model"
    assert run.data.params["trainer.learningRate"] == "5e-07"
    track(tmp_path / "ledger", {"mlflow": {"experiment": "sums"}}, SECOND)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.0625
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.75), (2, 0.5), (3, 0.375), (3, 0.125), (4, 0.0625)]
    assert run.data.metrics["evaluation/accuracy"] == 0.375


def test_a_preempted_attempt_says_so_in_mlflow(tmp_path: Path) -> None:
    uri = (tmp_path / "elsewhere").as_uri()
    track(tmp_path / "ledger", {"mlflow": {"trackingUri": uri}}, FIRST, Preempted)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("spinrun")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]


def test_pod_templates_which_may_hold_secrets_are_told_to_nobody() -> None:
    shown = settings(record({}))
    assert PASSWORD not in json.dumps(shown)
    assert shown["trainer"]["promptsPerStep"] == 64


def test_a_missing_package_is_said_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spinrun_worker.trainer.reporting.trackers.mlflow", None)
    with following(record({"mlflow": {}}), tmp_path) as (follower,):
        follower.offer(FIRST[0])
    assert follower.lines["failed"] == 1
    assert "pip install 'spinrun[mlflow]'" in caplog.text


def test_a_run_without_trackers_has_no_followers(tmp_path: Path) -> None:
    with following(record({}), tmp_path) as followers:
        assert list(followers) == []


def test_secrets_of_the_spec_are_told_to_nobody() -> None:
    described = record({"wandb": {"project": "p", "secretRef": {"name": "keys", "key": "wandb-api-key"}}})
    described.run["spec"]["rollout"]["engineArgs"] = {"hf-token": PASSWORD, "max-num-seqs": 8}
    described.run["spec"]["data"]["prompts"]["source"] = f"https://user:{PASSWORD}@host/x.jsonl"
    shown = settings(described)
    assert PASSWORD not in json.dumps(shown)
    assert shown["rollout"]["engineArgs"]["max-num-seqs"] == 8
    assert shown["telemetry"]["wandb"]["secretRef"] == {"name": "keys", "key": "wandb-api-key"}
