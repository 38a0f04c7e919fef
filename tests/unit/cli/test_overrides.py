"""--set, and paths in run files."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from spinrun_cli.errors import InvalidInputError
from spinrun_cli.overrides import merge, parse_override, read_run
from unit.cli.conftest import DOCUMENT


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("spec.duration.windows=3", {"spec": {"duration": {"windows": 3}}}),
        ("spec.trainer.learningRate=1e-5", {"spec": {"trainer": {"learningRate": 1e-5}}}),
        ("spec.model.source=a=b", {"spec": {"model": {"source": "a=b"}}}),
        ("spec.rollout={replicas: 2}", {"spec": {"rollout": {"replicas": 2}}}),
        ('metadata.name="7"', {"metadata": {"name": "7"}}),
        ("spec.data.evaluation=", {"spec": {"data": {"evaluation": None}}}),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, want: dict[str, Any]) -> None:
    assert parse_override(text) == want


@pytest.mark.parametrize("text", ["spec", "=3", "spec..x=3", "spec.x=[", ".spec=1"])
def test_an_override_that_cannot_be_read_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--set"):
        parse_override(text)


def test_merging_replaces_values_and_removes_what_is_null() -> None:
    document = {"a": {"b": 1, "c": [1, 2]}, "d": 4}

    assert merge(document, {"a": {"c": [3]}, "d": None, "e": {"f": None, "g": 1}}) == {
        "a": {"b": 1, "c": [3]},
        "e": {"f": None, "g": 1},
    }
    assert document == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_duration_can_be_replaced_by_another_kind(run_file: Path) -> None:
    run = read_run(run_file, ["spec.duration={windows: null, steps: 7}"])

    assert (run.spec.duration.windows, run.spec.duration.steps) == (None, 7)


def test_relative_paths_are_those_of_the_file_or_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "run.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(DOCUMENT | {"spec": DOCUMENT["spec"] | {"model": {"source": "../models/m"}}}))
    monkeypatch.chdir(tmp_path)

    run = read_run(path, ["spec.data.evaluation.source=./held-out.jsonl", "spec.data.evaluation.answerColumn=a"])

    assert run.spec.model.source == str(tmp_path / "models" / "m")
    assert run.spec.data.evaluation is not None
    assert run.spec.data.evaluation.source == str(tmp_path / "held-out.jsonl")
    assert run.spec.data.prompts.source == "arithmetic"


def test_relative_paths_of_several_sources_are_those_of_the_file_or_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "run.yaml"
    path.parent.mkdir()
    sources = [
        {"source": "arithmetic"},
        {"source": "./more.jsonl", "answerColumn": "a"},
        {"source": "org/set", "answerColumn": "a"},
    ]
    path.write_text(yaml.safe_dump(DOCUMENT | {"spec": DOCUMENT["spec"] | {"data": {"prompts": {"sources": sources}}}}))
    monkeypatch.chdir(tmp_path)

    def named(*overrides: str) -> list[str]:
        return [source.source for source in read_run(path, overrides).spec.data.prompts.sources or ()]

    assert named() == ["arithmetic", str(tmp_path / "runs" / "more.jsonl"), "org/set"]
    assert named("spec.data.prompts.sources=[{source: ./b.csv, answerColumn: a}]") == [str(tmp_path / "b.csv")]


def test_all_problems_are_in_the_error(run_file: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_run(run_file, ["spec.method.beta=-1", "spec.rollout.replicas=none"])

    assert "spec.method.beta" in str(caught.value)
    assert "spec.rollout.replicas" in str(caught.value)
