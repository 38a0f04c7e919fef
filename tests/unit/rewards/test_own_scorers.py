"""Models that the run serves itself: what is found out about them beforehand, and how its scorers are asked."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx

from spinrun_api.spec import Preference, Ranker
from spinrun_protocol.environment import SCORERS, TOKEN_FILE
from spinrun_protocol.wire import Sample
from spinrun_worker import model_config
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards import RewardFunction, build_reward_function
from spinrun_worker.rewards.source import check_source, fault_of
from support.fake_endpoint import Asked, FakeEndpoint, Says, serving, some_reply

CLASSIFIER = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def model_in(folder: Path, config: object = CLASSIFIER) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- what the model is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (CLASSIFIER, ""),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 1}, ""),
        ({"architectures": ["MyRewardModel"]}, ""),
        ({"architectures": []}, ""),
        ({}, ""),
        (
            {"architectures": ["Qwen2ForCausalLM"]},
            "is a language model (Qwen2ForCausalLM), which writes text and gives no scores",
        ),
        ({"architectures": ["GPT2LMHeadModel"]}, "is a language model (GPT2LMHeadModel), which writes text and gives no scores"),
        (
            {"architectures": ["BertForSequenceClassification"]},
            "is a classifier (BertForSequenceClassification) with 2 classes, whose scores are not a reward",
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "fair", "2": "good"}},
            "is a classifier (BertForSequenceClassification) with 3 classes, whose scores are not a reward",
        ),
    ],
    ids=str,
)
def test_a_model_that_gives_no_reward_is_known_by_its_configuration(config: dict[str, Any], want: str) -> None:
    assert fault_of(config) == want


def test_a_ranker_that_is_a_language_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "writer", {"architectures": ["Qwen2ForCausalLM"]})
    with pytest.raises(ConfigurationError) as raised:
        build_reward_function(
            Preference(ranker=Ranker(source=str(folder))), on_trouble=lambda _: None, stop=lambda: False, environment={}
        )
    assert str(raised.value).startswith(f"preference.ranker.source: {folder} is a language model (Qwen2ForCausalLM)")
    assert "name a sequence classifier with one class" in str(raised.value)


def test_a_model_that_vllm_is_told_to_convert_is_not_refused_for_what_it_was(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "reranker", {"architectures": ["Qwen3ForCausalLM"]})
    check_source("preference.ranker", Ranker(source=str(folder)), {"hf-overrides": '{"architectures": ["X"]}'})


def test_a_path_that_only_the_image_of_vllm_may_have_is_left_to_vllm() -> None:
    check_source("preference.ranker", Ranker(source="/models/in-the-image"), {})


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"preference\.ranker\.source: .*/config\.json cannot be read"):
        check_source("preference.ranker", Ranker(source=str(tmp_path)), {})


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "2_Dense/pytorch_model.bin"]
)
def test_a_reward_model_without_safetensors_is_refused_before_vllm_is_asked(tmp_path: Path, name: str) -> None:
    folder = model_in(tmp_path / "pickled")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ConfigurationError) as raised:
        check_source("preference.ranker", Ranker(source=str(folder)), {})
    assert str(raised.value).startswith(f"preference.ranker.source: {folder} has its weights in {name} alone")
    assert "save_pretrained" in str(raised.value)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["config.json", "pytorch_model.bin"], "has its weights in pytorch_model.bin alone"),
        (["config.json", "pytorch_model.bin", "onnx/model.safetensors"], "has its weights in pytorch_model.bin alone"),
        (["config.json", "pytorch_model.bin", "model.safetensors"], None),
        (["config.json", "model.safetensors", "original/consolidated.00.pth", "training_args.bin"], None),
        (["model.safetensors", "2_Dense/pytorch_model.bin"], "has its weights in 2_Dense/pytorch_model.bin alone"),
        (["model.safetensors", "2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"], None),
        (OSError("no route"), None),
        (OfflineModeIsEnabled("offline"), None),
    ],
    ids=[
        "a pickle",
        "safetensors for others",
        "both",
        "pickles for others",
        "a layer on top",
        "a layer in both forms",
        "no network",
        "offline",
    ],
)
def test_the_weights_of_a_model_of_the_hub_are_known_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | Exception, fault: str | None
) -> None:
    def listed(repository: str, *, revision: str | None) -> list[str]:
        assert (repository, revision) == ("org/stern", "abc")
        if isinstance(names, Exception):
            raise names
        return names

    monkeypatch.setattr(model_config, "hf_hub_download", lambda *_, **__: str(model_in(tmp_path / "cache") / "config.json"))
    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    if fault is None:
        check_source("preference.ranker", Ranker(source="org/stern", revision="abc"), {})
    else:
        with pytest.raises(ConfigurationError, match=f"preference.ranker.source: org/stern {fault}"):
            check_source("preference.ranker", Ranker(source="org/stern", revision="abc"), {})


@pytest.mark.parametrize("content", ["null", "[]", "{", "", "[" * 100_000], ids=["null", "list", "cut", "empty", "deep"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    folder = model_in(tmp_path / "model")
    (folder / "config.json").write_text(content)
    with pytest.raises(
        ConfigurationError, match=r"preference\.ranker\.source: .*config\.json (is not JSON|must hold a JSON object)"
    ):
        check_source("preference.ranker", Ranker(source=str(folder)), {})


NOT_FOUND = httpx.Response(404, request=httpx.Request("HEAD", "https://hub/org/stern"))


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (
            RepositoryNotFoundError("404: no such\nmore", response=NOT_FOUND),
            "the Hub has no model org/stern that this run may read",
        ),
        (RemoteEntryNotFoundError("404", response=NOT_FOUND), "org/stern is not a Hugging Face model: it has no config.json"),
        (LocalEntryNotFoundError("no copy in the cache, and the Hub is not to be reached"), None),
        (OSError("the network is down"), None),
    ],
    ids=["no such model", "no model in it", "no Hub", "no network"],
)
def test_a_model_of_the_hub_is_looked_up_with_its_revision(
    monkeypatch: pytest.MonkeyPatch, error: Exception, want: str | None
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, file: str, *, revision: str | None) -> str:
        asked.append((repository, file, revision))
        raise error

    monkeypatch.setattr(model_config, "hf_hub_download", download)
    model = Ranker(source="org/stern", revision="abc")
    if want is None:
        check_source("preference.ranker", model, {})  # the scorers may reach what the trainer cannot
    else:
        with pytest.raises(ConfigurationError) as raised:
            check_source("preference.ranker", model, {})
        assert str(raised.value).startswith(f"preference.ranker.source: {want}")
    assert asked == [("org/stern", "config.json", "abc")]


# --- how its scorers are asked --------------------------------------------------------------------------------------------


def scorer_of(tmp_path: Path, *endpoints: FakeEndpoint, kind: str = "rewardModel", **fields: Any) -> RewardFunction:
    """A run's scorer that asks these endpoints."""
    folder = tmp_path / "model" if (tmp_path / "model").exists() else model_in(tmp_path / "model")
    (tmp_path / "token").write_text("of the run\n")
    urls = ",".join(endpoint.url.removesuffix("/v1") for endpoint in endpoints)
    return build_reward_function(
        Preference.model_validate({kind: {"source": str(folder)} | fields}),
        on_trouble=lambda _: None,
        stop=lambda: False,
        environment={SCORERS: urls, TOKEN_FILE: str(tmp_path / "token")},
    )


def prompts(count: int) -> list[tuple[PromptRecord, tuple[Sample, ...]]]:
    answers = tuple(Sample(tokens=(index,), text=text, finish_reason="stop") for index, text in enumerate("ab"))
    return [(PromptRecord(str(index), (1,), f"ask {index}"), answers) for index in range(count)]


@pytest.mark.parametrize(("kind", "path"), [("rewardModel", "/classify"), ("ranker", "/score")])
def test_scorers_are_asked_by_the_models_source_and_with_the_runs_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, path: str
) -> None:
    # A network proxy does not lead to the run's own pods.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(some_reply) as endpoint:
        result = scorer_of(tmp_path, endpoint, kind=kind).score(prompts(1))
    assert result.messages == []
    assert {(each.path, each.body["model"]) for each in endpoint.asked} == {(path, str(tmp_path / "model"))}
    assert {each.headers["Authorization"] for each in endpoint.asked} == {"Bearer of the run"}


def test_requests_are_divided_among_scorers(tmp_path: Path) -> None:
    with serving(some_reply) as one, serving(some_reply) as other:
        scorer_of(tmp_path, one, other).score(prompts(10))
    assert sorted((len(one.asked), len(other.asked))) == [10, 11], "twenty answers, and a first question"


def test_what_a_dead_scorer_does_not_answer_another_one_does(tmp_path: Path) -> None:
    def fails(_: Asked) -> Says:
        return Says({"error": "vLLM does not answer"}, 503)

    with serving(fails) as dead, serving(some_reply) as alive:
        scorer = scorer_of(tmp_path, dead, alive)
        result = scorer.score(prompts(2))
    assert (result.messages, result.rewards) == ([], ((0.0, 0.0), (0.0, 0.0)))
    assert len(dead.asked) >= 2
    assert scorer.counts["retries"] >= 2


@pytest.mark.parametrize(
    ("status", "want"),
    [(401, "refuses the run's token"), (404, "serves the source, but not as a classifier: name a sequence classifier")],
)
def test_a_scorer_that_cannot_be_right_ends_the_run_with_a_message_about_the_source(
    tmp_path: Path, status: int, want: str
) -> None:
    with serving(lambda _: Says({"detail": "no"}, status)) as endpoint, pytest.raises(ConfigurationError) as raised:
        scorer_of(tmp_path, endpoint, kind="ranker")
    assert str(raised.value).startswith("preference.ranker: http://127.0.0.1:")
    assert want in str(raised.value)
    assert "url" not in str(raised.value).replace(endpoint.url, "")


def test_a_trainer_that_is_not_told_where_the_scorers_are_says_so(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=f"{SCORERS} must be set"):
        build_reward_function(
            Preference(ranker=Ranker(source=str(folder))), on_trouble=lambda _: None, stop=lambda: False, environment={}
        )
