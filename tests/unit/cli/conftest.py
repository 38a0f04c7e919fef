"""A run file, and a run's folder as a finished run leaves it."""

import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spinrun_cli.cluster import client, follow
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Sample
from spinrun_worker.ledger import Layout, write_samples
from spinrun_worker.records import PromptRecord, ScoredGroup
from unit.cli.cluster.fake_api_server import FakeApiServer, fake_api_server
from unit.cli.shell import Shell

DOCUMENT: dict[str, Any] = {
    "apiVersion": "spinrun.dev/v1alpha1",
    "kind": "SpinRun",
    "metadata": {"name": "adding"},
    "spec": {
        "model": {"source": "/models/tiny"},
        "data": {"prompts": {"source": "arithmetic"}, "evaluation": {"source": "arithmetic", "split": "test"}},
        "preference": {"rule": {"kind": "lastNumber"}},
        "duration": {"windows": 5},
    },
}
NUM_WINDOWS = 5
STEPS_PER_WINDOW = 4
ACCURACY = (0.511, 0.578, 0.667, 0.778, 0.8, 0.822)


@pytest.fixture
def spinrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command line, as impatient as a test."""
    monkeypatch.setattr(client, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    return Shell(capsys, monkeypatch)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeApiServer]:
    """An API server that KUBECONFIG names."""
    with fake_api_server(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield fake


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / "run.yaml"
    document = DOCUMENT | {"spec": DOCUMENT["spec"] | {"model": {"source": str(model)}}}
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """Folder of a local run of five windows, complete."""
    folder = tmp_path / "finished"
    layout = Layout(folder / "ledger")
    layout.root.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(DOCUMENT))
    words = TerminationMessage(result="Complete", reason="Completed", message="5 windows, 20 steps", exit_code=0)
    (folder / "last-words.json").write_text(words.model_dump_json(by_alias=True))
    layout.run_record.write_text(
        RunRecord(
            run=DOCUMENT,
            versions={"python": "3.11.7", "torch": "2.13.0"},
            machine={"processor": "x86_64", "cores": 2, "float32_gflops": 313.0},
            compute_dtype="float32",
            published_dtype="bfloat16",
            attempt=1,
            world_size=1,
        ).model_dump_json(by_alias=True)
    )
    layout.metrics.write_text("".join(f"{line.model_dump_json(by_alias=True)}\n" for line in metrics()))
    for version in (0, NUM_WINDOWS):
        layout.evaluation(version).mkdir(parents=True)
        write_samples(layout.evaluation(version) / "samples.parquet", answers(version))
    return folder


def metrics() -> list[MetricsLine]:
    lines: list[MetricsLine] = []

    def add(event: Any, window: int, step: int, values: dict[str, float]) -> None:
        time = 1000.0 + 13 * len(lines)
        lines.append(MetricsLine(event=event, attempt=1, time=time, window=window, step=step, version=window, values=values))

    for window in range(NUM_WINDOWS + 1):
        step = window * STEPS_PER_WINDOW
        add(
            "evaluation",
            window,
            step,
            {"accuracy": ACCURACY[window], "num_prompts": 90, "response_length/mean": 4 + 0.1 * window},
        )
        if window == NUM_WINDOWS:
            break
        for index in range(STEPS_PER_WINDOW):
            margin = 0.15 * index
            add("step", window, step + index + 1, step_values(margin))
        add("window", window, step + STEPS_PER_WINDOW, window_values(window))
    return lines


def step_values(margin: float) -> dict[str, float]:
    return {
        "loss": math.log(1 + math.exp(-margin)),
        "rewards/chosen": 0.4 * margin,
        "rewards/rejected": -0.6 * margin,
        "rewards/margins": margin,
        "rewards/accuracies": 0.5 + margin,
        "grad_norm": 1.0,
        "timing/train_seconds": 4.0,
    }


def window_values(window: int) -> dict[str, float]:
    return {
        "reward/mean": 0.4 + 0.08 * window,
        "samples": 512,
        "pairs": 58 - 4 * window,
        "paired_prompts": 58 - 4 * window,
        "ties": 6 + 4 * window,
        "all_right": 4 + 4 * window,
        "all_wrong": 2,
        "other_ties": 0,
        "identical": 0,
        "unrated": 0,
        "response_length/mean": 5.2 - 0.3 * window,
        "response_length/truncated": 0.05,
        "throughput/samples_per_second": 31 + window,
        "timing/generate_seconds": 18.0 - window,
        "timing/train_seconds": 16.0,
        "timing/reference_seconds": 3.1,
        "timing/evaluate_seconds": 3.4,
        "timing/publish_seconds": 1.2,
        "timing/activate_seconds": 1.6,
        "timing/checkpoint_seconds": 2.1,
        "timing/score_seconds": 0.1,
    }


def answers(version: int, *, text: str = "The answer is NUMBER.") -> list[ScoredGroup]:
    """Ten prompts: version 0 is right about the even ones, later versions about those and half of the others."""
    groups: list[ScoredGroup] = []
    for number in range(10):
        right = number % 2 == 0 or (version > 0 and number % 4 == 1)
        prompt = PromptRecord(f"p{number}", (1, 2), f"What is {number} + 7? Answer with just the number.", str(number + 7))
        answer = text.replace("NUMBER", str(number + 7 if right else number + 8))
        sample = Sample(tokens=(5, 6), text=answer, finish_reason="stop")
        groups.append(ScoredGroup(prompt, (sample,), (float(right),)))
    return groups
