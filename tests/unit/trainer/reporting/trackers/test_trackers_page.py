"""docs/trackers.md shows runs that are valid, and names what the code knows."""

import re
from pathlib import Path

import yaml

from spinrun_api.documents import parse_run
from spinrun_cli.overrides import merge
from spinrun_worker.trainer.reporting.trackers.follower import CLOSE_SECONDS, MAX_LINES
from unit.api.invalid_runs import MINIMAL

PAGE = (Path(__file__).resolve().parents[5] / "docs" / "trackers.md").read_text()


def test_runs_of_the_page_are_valid() -> None:
    documents = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(documents) == 2
    runs = [parse_run(merge(MINIMAL, document)) for document in documents]
    assert set(runs[0].spec.telemetry.to_document()) == {"wandb", "tensorboard", "mlflow"}


def test_limits_of_the_page_are_those_of_the_code() -> None:
    assert f"up to {MAX_LINES} lines wait" in PAGE
    assert f"it has {CLOSE_SECONDS['complete']:g} seconds" in PAGE
