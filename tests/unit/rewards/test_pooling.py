"""Reward models and rankers over HTTP: what they are asked, and what their numbers are worth."""

import math
from typing import Any

import pytest

from spinrun_api.spec import Preference
from spinrun_protocol.environment import PREFERENCE_KEY
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards import RewardFunction, build_reward_function
from support.fake_endpoint import Asked, FakeEndpoint, Play, Says, classes, scores, serving, some_reply

SECRET = {"name": "scores", "key": "api-key"}
TEMPLATE = "{prompt} -> {answer}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def scorer_at(endpoint: FakeEndpoint, kind: str, **fields: Any) -> RewardFunction:
    block = {"url": endpoint.url.removesuffix("/v1"), "model": "stern"} | fields
    preference = Preference.model_validate({kind: block})
    return build_reward_function(preference, on_trouble=lambda _: None, stop=lambda: False, environment={PREFERENCE_KEY: "sk-1"})


def group(name: str, *texts: str, answer: str | None = None) -> tuple[PromptRecord, tuple[Sample, ...]]:
    samples = tuple(Sample(tokens=(index,), text=text, finish_reason="stop") for index, text in enumerate(texts))
    return PromptRecord(name, (1,), f"ask {name}", answer), samples


def lengths(asked: Asked) -> Says:
    """Rewards an answer with its length."""
    if "messages" in asked.body:
        return classes(float(len(asked.body["messages"][1]["content"])))
    return classes(*(float(len(text.partition(" -> ")[2])) for text in asked.body["input"]))


# --- reward models ------------------------------------------------------------------------------------------------------


def test_a_conversation_is_sent_for_each_answer_and_its_number_is_the_reward() -> None:
    with serving(lengths) as endpoint:
        scorer = scorer_at(endpoint, "rewardModel", secretRef=SECRET)
        result = scorer.score([group("p", "a", "bbb"), group("q", "cc")])
    assert result.rewards == ((1.0, 3.0), (2.0,))
    assert result.messages == []
    check, *asked = endpoint.asked
    conversation = [{"role": "user", "content": "ask p"}, {"role": "assistant", "content": "bbb"}]
    assert {"model": "stern", "use_activation": False, "messages": conversation} in [each.body for each in asked]
    assert {each.path for each in endpoint.asked} == {"/classify"}
    assert {each.headers["Authorization"] for each in endpoint.asked} == {"Bearer sk-1"}
    assert check.body["messages"][0]["content"] == "What is 1 + 1?"
    assert (scorer.counts["requests"], scorer.counts["prompt_tokens"]) == (4, 20)


def test_with_a_template_many_texts_are_sent_at_once_and_keep_their_order() -> None:
    answers = ["x" * length for length in range(70)]
    with serving(lengths) as endpoint:
        result = scorer_at(endpoint, "rewardModel", template=TEMPLATE).score([group("p", *answers)])
    assert result.rewards == (tuple(float(length) for length in range(70)),)
    assert sorted(len(each.body["input"]) for each in endpoint.asked) == [1, 6, 32, 32]
    assert "ask p -> xx" in [text for each in endpoint.asked for text in each.body["input"]]


def test_held_out_answers_are_rewarded_in_the_same_way() -> None:
    with serving(lengths) as endpoint:
        assert scorer_at(endpoint, "rewardModel").grade([group("p", "four")]).rewards == ((4.0,),)


def test_an_answer_that_the_server_does_not_take_costs_no_other_one_of_its_request() -> None:
    def play(asked: Asked) -> Says:
        too_long = any("long" in text for text in asked.body["input"])
        return Says({"error": "longer than max_model_len"}, 400) if too_long else lengths(asked)

    with serving(play) as endpoint:
        scorer = scorer_at(endpoint, "rewardModel", template=TEMPLATE)
        result = scorer.score([group("p", "a", "too long"), group("q", "bb")])
    assert result.rewards == ((1.0, None), (2.0,))
    (message,) = result.messages
    assert message.startswith("answers without a reward: 1 (refused); the first, of prompt p: status 400")


@pytest.mark.parametrize(
    "body",
    [
        '{"data": [{"index": 0, "probs": [NaN]}]}',
        '{"data": [{"index": 0, "probs": [Infinity]}]}',
        '{"data": [{"index": 0, "probs": [1e999]}]}',
        {"data": [{"index": 0, "probs": [None]}]},
        {"data": [{"index": 0, "probs": ["0.5"]}]},
        {"data": [{"index": 0, "probs": [0.1, 0.9]}]},
        {"data": [{"index": 0, "probs": []}]},
        {"data": [{"index": 1, "probs": [0.5]}]},
        {"data": [{"index": 0, "probs": [0.5]}, {"index": 0, "probs": [0.6]}]},
        {"data": []},
        {"data": {"index": 0}},
        {},
        "garbage",
    ],
    ids=str,
)
def test_what_is_not_a_number_is_not_a_reward(body: object) -> None:
    with serving(lambda _: Says(body)) as endpoint:
        result = scorer_at(endpoint, "rewardModel").score([group("p", "a")])
    assert result.rewards == ((None,),)
    assert [failure.kind for failure in result.failures] == ["no answer"]


@pytest.mark.parametrize("kind", ["rewardModel", "ranker"])
def test_a_server_without_the_path_ends_the_run_at_the_start(kind: str) -> None:
    with serving(lambda _: Says({"detail": "Not Found"}, 404)) as endpoint, pytest.raises(ConfigurationError) as raised:
        scorer_at(endpoint, kind)
    assert str(raised.value).startswith(f"preference.{kind}: ")
    assert "knows no such path or model" in str(raised.value)


# --- rankers --------------------------------------------------------------------------------------------------------------


def by_length(asked: Asked) -> Says:
    """log 3 in favour of the longer of two answers, and 1 in favour of the first."""
    pairs = zip(asked.body["text_1"], asked.body["text_2"], strict=True)
    return scores(*(1 + math.log(3) * (1 if len(one.partition("\n\n")[2]) > len(two) else -1) for one, two in pairs))


def test_the_logistic_of_the_score_averaged_over_both_orders_is_the_win_rate() -> None:
    def probability(score: float) -> float:
        return 1 / (1 + math.exp(-score))

    longer = (probability(1 + math.log(3)) + 1 - probability(1 - math.log(3))) / 2
    with serving(by_length) as endpoint:
        scorer = scorer_at(endpoint, "ranker")
        result = scorer.score([group("p", "a", "bb", "ccc")])
    assert result.rewards[0] == pytest.approx((1 - longer, 0.5, longer))
    (_, asked) = endpoint.asked
    assert asked.path == "/score"
    assert asked.body["use_activation"] is False
    assert ("ask p\n\nbb", "ccc") in list(zip(asked.body["text_1"], asked.body["text_2"], strict=True))
    assert ("ask p\n\nccc", "bb") in list(zip(asked.body["text_1"], asked.body["text_2"], strict=True))


def test_templates_say_what_a_ranker_sees() -> None:
    with serving(some_reply) as endpoint:
        templates = {"firstTemplate": "A {answer} to {prompt}", "secondTemplate": "B {answer}"}
        scorer_at(endpoint, "ranker", **templates).grade([group("p", "mine", answer="true")])
    body = endpoint.asked[-1].body
    assert body["text_1"] == ["A mine to ask p", "A true to ask p"]
    assert body["text_2"] == ["B true", "B mine"]


@pytest.mark.parametrize("score", [1e6, -1e6])
def test_a_huge_score_is_a_certain_preference(score: float) -> None:
    def play(asked: Asked) -> Says:
        return scores(*(score if one.endswith("a") else -score for one in asked.body["text_1"]))

    with serving(play) as endpoint:
        result = scorer_at(endpoint, "ranker").score([group("p", "a", "b")])
    assert result.rewards == (((1.0, 0.0) if score > 0 else (0.0, 1.0)),)


@pytest.mark.parametrize("reply", [scores(None), scores(), Says('{"data": [{"index": 0, "score": NaN}]}')], ids=str)
def test_a_comparison_without_a_number_has_no_outcome(reply: Says) -> None:
    play: Play = lambda _: reply  # noqa: E731
    with serving(play) as endpoint:
        result = scorer_at(endpoint, "ranker").score([group("p", "a", "b")])
    assert result.rewards == ((None, None),)
    assert result.messages[0].startswith("comparisons without an outcome: 2 (no answer)")
