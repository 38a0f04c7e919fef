"""What is found before anything starts."""

import tomllib
from pathlib import Path

import pytest

from spinrun_api.run import SpinRun
from spinrun_api.spec import Telemetry
from spinrun_cli.errors import InvalidInputError
from spinrun_cli.local.checks import (
    TRACKERS,
    check_preference,
    check_sources,
    check_trackers,
    fit_to_model,
    for_one_machine,
    unused_fields,
)
from spinrun_cli.overrides import read_run


def test_a_run_whose_sources_are_there_passes(run_file: Path) -> None:
    check_sources(read_run(run_file))


def test_lengths_that_are_left_open_become_what_the_model_reads(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')

    spec = fit_to_model(read_run(run_file)).spec

    assert (spec.data.max_prompt_tokens, spec.rollout.max_tokens) == (256, 256)


@pytest.mark.parametrize(
    ("override", "want"),
    [
        ("spec.rollout.maxTokens=600", "spec.data.maxPromptTokens: 1 and spec.rollout.maxTokens 600 make 601 tokens"),
        ("spec.rollout.tensorParallelSize=3", "spec.rollout.tensorParallelSize: 3 GPUs cannot share"),
        ("spec.preference={rule: null, ranker: {source: FOLDER/model}}", ""),
    ],
)
def test_what_the_models_files_contradict_is_said_before_anything_starts(
    run_file: Path, tmp_path: Path, override: str, want: str
) -> None:
    config = '{"model_type": "llama", "max_position_embeddings": 512, "num_attention_heads": 8}'
    (tmp_path / "model" / "config.json").write_text(config)
    run = read_run(run_file, [override.replace("FOLDER", str(tmp_path))])
    if not want:
        fit_to_model(run)
        return
    with pytest.raises(InvalidInputError) as raised:
        fit_to_model(run)
    assert want in str(raised.value)


@pytest.mark.parametrize(
    ("override", "want"),
    [
        ("spec.model.source=/none", "spec.model.source: /none is not a folder"),
        ("spec.model.source=FOLDER/empty", "its config.json is missing or has no model_type"),
        ("spec.model.source=FOLDER/broken", "its config.json is missing or has no model_type"),
        ("spec.model.source=FOLDER/null", "its config.json is missing or has no model_type"),
        ("spec.model.source=FOLDER/deep", "its config.json is missing or has no model_type"),
        ("spec.model.source=FOLDER/pickled", "spec.model.source: FOLDER/pickled has its weights in pytorch_model.bin alone"),
        ("spec.model.source=FOLDER/cut", "spec.model.source: FOLDER/cut/model.safetensors is not a whole safetensors file"),
        (
            "spec.preference={rule: null, rewardModel: {source: FOLDER/pickled}}",
            "spec.preference.rewardModel.source: FOLDER/pickled has its weights in pytorch_model.bin alone",
        ),
        ("spec.model.source=a/b/c", "a/b/c is not the id of a Hub model"),
        ("spec.model.source=nobody/nothing-like-this", "nobody/nothing-like-this"),
        ("spec.model.tokenizer=/none", "spec.model.tokenizer: /none is not a folder"),
        (
            "spec.preference={rule: null, rewardModel: {source: /none}}",
            "spec.preference.rewardModel.source: /none is not a folder",
        ),
        (
            "spec.preference={rule: null, ranker: {source: FOLDER/writer}}",
            "spec.preference.ranker.source: FOLDER/writer is a language model (LlamaForCausalLM)",
        ),
        ("spec.data.prompts={source: /none.csv, answerColumn: a}", "spec.data.prompts.source: /none.csv is not a file"),
        (
            "spec.data.prompts={source: null, sources: [{source: arithmetic}, {source: /none.csv, answerColumn: a}]}",
            "spec.data.prompts.sources[1].source: /none.csv is not a file",
        ),
        ("spec.data.evaluation={source: FOLDER/data.txt, answerColumn: a}", "must end with one of .jsonl, .parquet, .csv"),
    ],
)
def test_a_source_that_is_missing_is_named_with_its_field(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, want: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1, 2")
    (tmp_path / "writer").mkdir()
    (tmp_path / "writer" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "data.txt").write_text("x")
    for name, config, weights in (
        ("null", "null", "model.safetensors"),
        ("deep", "[" * 100_000, "model.safetensors"),
        ("pickled", '{"model_type": "llama"}', "pytorch_model.bin"),
        ("cut", '{"model_type": "llama"}', "model.safetensors"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / weights).write_bytes(b"x")
    run = read_run(run_file, [override.replace("FOLDER", str(tmp_path))])

    with pytest.raises(InvalidInputError) as caught:
        check_sources(run)

    assert want.replace("FOLDER", str(tmp_path)) in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "want"),
    [
        ([], []),
        (["spec.storage.size=50Gi"], []),
        (["spec.storage.size=51Gi", "spec.trainer.nodes=2"], ["spec.storage", "spec.trainer.nodes"]),
        (
            ["spec.rollout.template={spec: {}}", "spec.lifecycle.suspend=true"],
            ["spec.rollout.template", "spec.lifecycle.suspend"],
        ),
        (["spec.network={egress: []}"], ["spec.network"]),
        (
            ["spec.preference={rule: null, ranker: {source: a/b}}", "spec.scorer={replicas: 2, image: mine, dtype: float32}"],
            ["spec.scorer.image"],
        ),
    ],
)
def test_fields_that_only_a_cluster_uses_are_found(run_file: Path, overrides: list[str], want: list[str]) -> None:
    assert unused_fields(read_run(run_file, overrides)) == want


def test_a_run_of_another_method_has_no_unused_fields_for_it(run_file: Path) -> None:
    assert unused_fields(read_run(run_file, ["spec.method.name=spin", "spec.preference={groundTruth: {}, rule: null}"])) == []


def test_a_run_has_one_trainer_node_on_one_machine(run_file: Path) -> None:
    run = read_run(run_file, ["spec.trainer.nodes=4", "spec.trainer.procsPerNode=2"])

    here = for_one_machine(run)

    assert (here.spec.trainer.nodes, here.spec.trainer.procs_per_node) == (1, 2)
    assert SpinRun.model_validate(here.to_document()) == here


JUDGE = "spec.preference={rule: null, judge: {url: 'https://judge/v1', model: wise, secretRef: {name: judge, key: key}}}"


@pytest.mark.parametrize("key", ["", " ", None])
def test_the_key_of_a_judge_must_be_in_the_environment(run_file: Path, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv("SPINRUN_PREFERENCE_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SPINRUN_PREFERENCE_KEY", key)
    with pytest.raises(InvalidInputError, match=r"spec\.preference\.judge\.secretRef: .* set SPINRUN_PREFERENCE_KEY"):
        check_preference(read_run(run_file, [JUDGE]))


def test_a_preference_that_has_what_it_needs_passes(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINRUN_PREFERENCE_KEY", "sk-1")
    check_preference(read_run(run_file, [JUDGE]))
    check_preference(read_run(run_file))


def test_the_package_of_a_tracker_must_be_there(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(run_file, ["spec.telemetry={mlflow: {}, tensorboard: {}}"])
    check_trackers(run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(InvalidInputError, match=r"spec\.telemetry\.mlflow: .* pip install 'spinrun\[mlflow\]'"):
        check_trackers(run)
    check_trackers(read_run(run_file))


def test_each_tracker_of_the_spec_has_a_package_and_an_extra() -> None:
    extras = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert list(TRACKERS) == list(Telemetry.model_fields)
    assert TRACKERS.keys() <= extras.keys()
