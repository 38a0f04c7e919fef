"""A judge over HTTP: what it is asked, what its replies are worth, and what its faults cost."""

import gzip
import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from spinrun_api.spec import JUDGE_TEMPLATE, Judge, Preference
from spinrun_protocol.environment import PREFERENCE_KEY
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import ConfigurationError, Preempted
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards import RewardFunction, ScoreResult, build_reward_function
from spinrun_worker.rewards.comparison import Comparison
from spinrun_worker.rewards.endpoint import EndpointClient, RetryPolicy, Server, retry_after_seconds
from spinrun_worker.rewards.judge import ChatDialect
from spinrun_worker.rewards.wording import filled
from support.fake_endpoint import PLAIN, Asked, FakeEndpoint, Says, chat, prefers, serving

KEY = "sk-very-secret-0123456789"
SECRET = {"name": "judge", "key": "api-key"}
HASTE = RetryPolicy(first_pause=0.01, longest_pause=0.05, down=0.2, tries=3, tick=0.02)

QUESTION = Comparison("p", "say much", "a", "bb")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge_at(endpoint: FakeEndpoint, **fields: Any) -> Judge:
    return Judge.model_validate({"url": endpoint.url, "model": "wise", "template": PLAIN} | fields)


def client_of(
    judge: Judge, *, key: str | None = None, troubles: list[str] | None = None, retry_policy: RetryPolicy = HASTE, **options: Any
) -> EndpointClient:
    told = troubles if troubles is not None else []
    defaults: dict[str, Any] = {
        "server": Server("preference.judge", (judge.url,), key),
        "on_trouble": told.append,
        "stop": lambda: False,
    }
    canary = Comparison("canary", "canary", "x", "yy")
    return EndpointClient(judge, ChatDialect(judge), canary=canary, retry_policy=retry_policy, **defaults | options)


def scorer_of(judge: Judge) -> RewardFunction:
    environment = {PREFERENCE_KEY: KEY}
    return build_reward_function(Preference(judge=judge), on_trouble=lambda _: None, stop=lambda: False, environment=environment)


def prompt(name: str, answer: str | None = None) -> PromptRecord:
    return PromptRecord(name, (1,), f"question {name}", answer)


def samples(*texts: str) -> tuple[Sample, ...]:
    return tuple(Sample(tokens=(index,), text=text, finish_reason="stop") for index, text in enumerate(texts))


def score(endpoint: FakeEndpoint, *texts: str, **fields: Any) -> ScoreResult:
    return scorer_of(judge_at(endpoint, **fields)).score([(prompt("p"), samples(*texts))])


def in_turn(*replies: Says) -> Any:
    """Plays replies one after the other; the last one for ever."""
    left: Iterator[Says] = iter(replies)
    lock = threading.Lock()

    def play(_: Asked) -> Says:
        with lock:
            return next(left, replies[-1])

    return play


# --- what is asked -----------------------------------------------------------------------------------------------------


def test_a_chat_with_both_answers_is_asked_for_in_both_orders() -> None:
    with serving(prefers(len)) as endpoint:
        result = score(endpoint, "a", "bb", secretRef=SECRET, maxTokens=7)

    assert result.rewards == ((0.0, 1.0),)
    check, *asked = endpoint.asked
    assert "What is 1 + 1?" in check.text
    assert sorted(each.text for each in asked) == ["question p|a|bb", "question p|bb|a"]
    assert {each.path for each in asked} == {"/v1/chat/completions"}
    assert {each.headers["Authorization"] for each in asked} == {f"Bearer {KEY}"}
    message = asked[0].body.pop("messages")
    assert [each["role"] for each in message] == ["user"]
    assert asked[0].body == {"model": "wise", "max_tokens": 7, "temperature": 0, "logprobs": True, "top_logprobs": 20}


def test_no_key_is_sent_without_a_secret() -> None:
    with serving(prefers(len)) as endpoint:
        score(endpoint, "a", "bb")
    assert all("Authorization" not in asked.headers for asked in endpoint.asked)


def test_a_placeholder_in_an_answer_stays_as_it_is() -> None:
    texts = {"prompt": "repeat {first}", "first": "{second} {prompt}", "second": "{x}"}
    assert filled("{prompt}/{first}/{second}/{other}", **texts) == "repeat {first}/{second} {prompt}/{x}/{other}"


def test_the_default_template_shows_everything_in_order() -> None:
    text = filled(JUDGE_TEMPLATE, prompt="PROMPT", first="FIRST", second="SECOND")
    assert text.index("PROMPT") < text.index("FIRST") < text.index("SECOND")
    assert "{" not in text


def test_every_answer_meets_every_other_of_its_prompt_and_no_one_else() -> None:
    with serving(prefers(len)) as endpoint:
        scorer = scorer_of(judge_at(endpoint))
        result = scorer.score([(prompt("p"), samples("a", "bbb", "bb")), (prompt("q"), samples("cc", "c"))])
    assert result.rewards == ((0.0, 1.0, 0.5), (1.0, 0.0))
    assert len(endpoint.asked) == 1 + 2 * (3 + 1)
    assert scorer.counts["requests"] == len(endpoint.asked)


def test_a_held_out_answer_is_compared_with_the_true_one() -> None:
    with serving(prefers(len)) as endpoint:
        result = scorer_of(judge_at(endpoint)).grade([(prompt("p", "bb"), samples("a")), (prompt("q", "b"), samples("aa"))])
    assert result.rewards == ((0.0,), (1.0,))


def test_equal_answers_are_a_draw_that_nobody_is_asked_about() -> None:
    with serving(prefers(len)) as endpoint:
        result = score(endpoint, "a", "a")
    assert result.rewards == ((0.5, 0.5),)
    assert len(endpoint.asked) == 1


# --- what a reply is worth ----------------------------------------------------------------------------------------------


def answer_to(play: Any, **fields: Any) -> Any:
    with serving(play) as endpoint:
        (answer,) = client_of(judge_at(endpoint, **fields)).ask([QUESTION])
    return answer


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        (chat("1", tops={"1": math.log(0.6), "2": math.log(0.2), "x": -5.0}), 0.75),
        (chat("2", tops={"1": math.log(0.2), "2": math.log(0.6)}), 0.25),
        (chat("1", tops={"1": math.log(0.3), " 1": math.log(0.3), "2": math.log(0.2)}), 0.75),
        (chat("1", tops={"1": -0.01, "one": -5.0}), 1.0),
        (chat("1", tops={}), 1.0),
        (chat("2", tops={"1": -9999.0, "2": -9999.0}), 0.0),
    ],
    ids=["first", "second", "with-a-space", "only-one-named", "none-named", "vanishing"],
)
def test_probabilities_of_both_numbers_are_normalised(reply: Says, want: float) -> None:
    assert answer_to(lambda _: reply) == pytest.approx(want)


def test_the_token_that_names_the_choice_counts_even_after_reasoning() -> None:
    text = "Answer 1 is short.\n2"
    tokens: list[dict[str, Any]] = [{"token": "Answer 1 is short.\n", "logprob": -1.0}]
    tops = [{"token": "1", "logprob": math.log(0.1)}, {"token": "2", "logprob": math.log(0.4)}]
    tokens.append({"token": "2", "logprob": math.log(0.4), "top_logprobs": tops})
    choice = {"message": {"content": text}, "logprobs": {"content": tokens}}
    assert answer_to(lambda _: Says({"choices": [choice]})) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1", 1.0),
        (" 2\n", 0.0),
        ("**1**", 1.0),
        ("Answer 2.", 0.0),
        ("(1)", 1.0),
        ("Both 1 and 2 are fine, but\nthe better one is 2", 0.0),
        ("<think>1 or 2?</think>\n\n1", 1.0),
    ],
)
def test_a_reply_without_log_probs_counts_by_its_last_line(text: str, want: float) -> None:
    assert answer_to(lambda _: chat(text)) == want


def cut(text: str) -> Says:
    reply = chat(text, tops={})
    assert isinstance(reply.body, dict)
    return replace(reply, body=reply.body | {"choices": [reply.body["choices"][0] | {"finish_reason": "length"}]})


@pytest.mark.parametrize(("text", "want"), [("1", 1.0), ("**2", 0.0), ("So I choose\n1", 1.0)])
def test_a_reply_that_is_cut_off_after_its_choice_counts(text: str, want: float) -> None:
    assert answer_to(lambda _: cut(text)) == want


@pytest.mark.parametrize("text", ["Answer 1 is the better one because", "1. The first answer", "Let me see. Answer 2"])
def test_a_reply_that_is_cut_off_within_its_reasons_is_no_answer(text: str) -> None:
    failure = answer_to(lambda _: cut(text), maxTokens=8)
    assert failure.kind == "no answer"
    assert "cut off at preference.judge.maxTokens" in failure.message


@pytest.mark.parametrize("text", ["", None, "neither", "1 or 2", "12", "1.5", "1,5", "3", "1\nI cannot decide", "v2"])
def test_a_reply_that_names_neither_or_both_is_no_answer(text: str | None) -> None:
    failure = answer_to(lambda _: chat(text))
    assert failure.kind == "no answer"
    assert "must name 1 or 2" in failure.message


@pytest.mark.parametrize(
    "body",
    [
        "garbage",
        "",
        b"\xff\xfe\x00",
        [],
        {},
        {"choices": []},
        {"choices": [{"message": {"content": 1}}]},
        {"choices": [{"message": {"content": "1"}}] * 17},
        {"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"token": "1", "logprob": "x"}]}}]},
        '{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"token": "1", "logprob": NaN}]}}]}',
        '{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"token": "1", "logprob": 1e300}]}}]}',
        {"choices": [{"message": {"content": "1"}}], "usage": {"prompt_tokens": -5}},
        "[" * 100_000,
        "1" * (9 << 20),
    ],
    ids=lambda body: str(body)[:40],
)
def test_what_is_no_reply_is_a_failure_and_no_reward(body: object) -> None:
    assert answer_to(lambda _: Says(body)).kind == "no answer"


def test_orders_that_disagree_make_a_tie_and_are_counted() -> None:
    with serving(lambda _: chat("1")) as endpoint:
        scorer = scorer_of(judge_at(endpoint))
        result = scorer.score([(prompt("p"), samples("a", "bb"))])
    assert result.rewards == ((0.5, 0.5),)
    assert scorer.counts["disagreements"] == 1


def test_orders_are_averaged() -> None:
    def play(asked: Asked) -> Says:
        first_is_a = asked.text.endswith("|a|bb")
        return chat("1", tops={"1": math.log(0.9 if first_is_a else 0.6), "2": math.log(0.1 if first_is_a else 0.4)})

    with serving(play) as endpoint:
        result = score(endpoint, "a", "bb")
    assert result.rewards[0] == pytest.approx(((0.9 + 0.4) / 2, (0.1 + 0.6) / 2))


def test_tokens_are_added_up() -> None:
    with serving(lambda _: chat("1", usage={"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102})) as endpoint:
        scorer = scorer_of(judge_at(endpoint))
        scorer.score([(prompt("p"), samples("a", "bb"))])
    assert (scorer.counts["prompt_tokens"], scorer.counts["completion_tokens"]) == (300, 6)


def test_tokens_of_a_useless_reply_count_too() -> None:
    with serving(lambda _: chat("neither", usage={"prompt_tokens": 100, "completion_tokens": 9})) as endpoint:
        client = client_of(judge_at(endpoint))
        client.ask([QUESTION])
    assert (client.counts["prompt_tokens"], client.counts["completion_tokens"]) == (100, 9)


def test_a_failed_order_costs_the_comparison_and_is_told() -> None:
    def play(asked: Asked) -> Says:
        return chat("what?") if asked.text == "question p|bb|a" else chat("1")

    with serving(play) as endpoint:
        result = score(endpoint, "a", "bb")
    assert result.rewards == ((None, None),)
    (message,) = result.messages
    assert message.startswith("comparisons without an outcome: 1 (no answer); the first, of prompt p: the last line of the reply")


# --- what the faults of a server cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        (Says({"error": "bad key"}, 401), "refuses the key: correct secretRef"),
        (Says({"error": "not yours"}, 403), "let the key use the model"),
        (Says({"error": "no such model"}, 404), "knows no such path or model"),
        (Says("<html>hello", 200, {"Content-Type": "text/html"}), "is a web page, not an API"),
        (Says("  <!DOCTYPE html>", 400), "is a web page, not an API"),
        (Says("", 302, {"Location": "http://127.0.0.1:1/elsewhere"}), "redirects"),
    ],
    ids=["401", "403", "404", "html", "html-refusal", "redirect"],
)
def test_what_only_the_user_can_set_right_ends_the_run_at_the_start(reply: Says, want: str) -> None:
    with serving(lambda _: reply) as endpoint, pytest.raises(ConfigurationError, match=want) as raised:
        scorer_of(judge_at(endpoint, secretRef=SECRET))
    assert str(raised.value).startswith(f"preference.judge: {endpoint.url}/chat/completions")
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_key_says_what_to_set(status: int) -> None:
    with serving(lambda _: Says({}, status)) as endpoint, pytest.raises(ConfigurationError, match="wants a key: set secretRef"):
        scorer_of(judge_at(endpoint))


def test_an_address_that_is_none_ends_the_run_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="is not a valid address: correct url"):
        scorer_of(Judge(url="http://judge:port/v1", model="wise"))


def test_a_throttled_server_is_not_asked_more_than_it_has_to_be() -> None:
    with serving(in_turn(*[Says({}, 429)] * 8, chat("1"))) as endpoint:
        assert client_of(judge_at(endpoint)).ask([QUESTION]) == [1.0]
    assert len(endpoint.asked) == 9


def test_a_packed_reply_is_not_unpacked() -> None:
    packed = gzip.compress(b" " * (1 << 20) + chat("1").content)
    with serving(lambda _: Says(packed, 200, {"Content-Encoding": "gzip"})) as endpoint:
        (failure,) = client_of(judge_at(endpoint)).ask([QUESTION])
    assert failure.kind == "no answer"
    assert endpoint.asked[0].headers["Accept-Encoding"] == "identity"


def test_a_key_that_is_withdrawn_ends_the_run() -> None:
    with (
        serving(in_turn(chat("1"), chat("1"), Says({}, 401))) as endpoint,
        pytest.raises(ConfigurationError, match="refuses the key"),
    ):
        score(endpoint, "a", "bb", "ccc", secretRef=SECRET)


def test_retry_after_is_honoured_for_all_requests() -> None:
    with serving(in_turn(Says({}, 429, {"Retry-After": "1"}), chat("1"))) as endpoint:
        answers = client_of(judge_at(endpoint, concurrency=1)).ask([QUESTION, QUESTION])
    assert answers == [1.0, 1.0]
    first, *later = endpoint.asked
    assert all(each.time - first.time >= 0.99 for each in later)


@pytest.mark.parametrize(
    ("header", "want"),
    [
        ("2", 2),
        ("99999", 99999),
        ("-3", 0),
        ("nan", 0),
        ("inf", math.inf),
        ("soon", 0),
        (None, 0),
        (formatdate(0, usegmt=True), 0),
    ],
)
def test_retry_after_is_read(header: str | None, want: float) -> None:
    assert retry_after_seconds(header) == want


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_seconds(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=1.5)


def test_retry_after_is_bounded() -> None:
    brief = RetryPolicy(first_pause=0.01, longest_pause=0.05, longest_retry_after=0.2)
    with serving(in_turn(Says({}, 429, {"Retry-After": "99999"}), chat("1"))) as endpoint:
        assert client_of(judge_at(endpoint), retry_policy=brief).ask([QUESTION]) == [1.0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_fault_costs_nothing(status: int) -> None:
    with serving(in_turn(Says("oops", status), Says("oops", status), chat("1"))) as endpoint:
        client = client_of(judge_at(endpoint))
        assert client.ask([QUESTION]) == [1.0]
    assert client.counts["retries"] == 2
    assert client.counts["failures"] == 0


@pytest.mark.parametrize(
    "fault", [Says("<html>bad gateway", 502, {"Content-Type": "text/html"}), Says({}, 429)], ids=["502", "429"]
)
def test_a_server_that_is_down_makes_the_run_wait_and_says_so(fault: Says) -> None:
    troubles: list[str] = []
    with serving(lambda _: fault) as endpoint:

        def told(trouble: str) -> None:
            troubles.append(trouble)
            endpoint.play = lambda _: chat("1")

        assert client_of(judge_at(endpoint), on_trouble=told).ask([QUESTION] * 3) == [1.0] * 3
    assert len(troubles) == 2
    assert troubles[0].startswith(f"preference.judge does not answer: status {fault.status}")
    assert troubles[1] == ""


def test_a_connection_that_is_refused_makes_the_run_wait_until_it_is_stopped() -> None:
    with serving(lambda _: chat("1")) as endpoint:
        judge = judge_at(endpoint)
    troubles: list[str] = []
    client = client_of(judge, troubles=troubles, stop=lambda: bool(troubles))
    with pytest.raises(Preempted, match=r"stopped while waiting for preference\.judge"):
        client.ask([QUESTION])
    assert "ClientConnectorError" in troubles[0]
    assert troubles[-1] == ""


def test_a_judge_that_is_down_at_the_start_is_waited_for_later() -> None:
    with serving(in_turn(Says({}, 503), chat("2"))) as endpoint:
        assert score(endpoint, "a", "bb").rewards == ((0.5, 0.5),)


def test_a_question_that_alone_fails_again_and_again_is_given_up() -> None:
    def play(asked: Asked) -> Says:
        return Says({}, 500) if asked.text.startswith("poison") else chat("1")

    poison = replace(QUESTION, prompt="poison")
    with serving(play) as endpoint:
        client = client_of(judge_at(endpoint))
        assert client.ask([QUESTION]) == [1.0]
        (bad,) = client.ask([poison])
    assert (bad.kind, client.counts["failures"]) == ("server error", 1)
    assert any(each.text.startswith("canary") for each in endpoint.asked), "nobody else shows that the server is up"


def test_a_slow_reply_is_asked_for_again_and_then_given_up() -> None:
    def play(asked: Asked) -> Says:
        return replace(chat("1"), after_seconds=1.0 if asked.text.startswith("slow") else 0.0)

    slow = replace(QUESTION, prompt="slow")
    with serving(play) as endpoint:
        (answer,) = client_of(judge_at(endpoint, timeoutSeconds=0.1)).ask([slow])
    assert (answer.kind, answer.message) == ("too slow", "no reply in 0.1 s")
    assert sum(each.text.startswith("slow") for each in endpoint.asked) > HASTE.tries


def test_a_request_that_is_refused_costs_that_comparison() -> None:
    failure = answer_to(lambda _: Says({"error": "this prompt is too long"}, 400))
    assert (failure.kind, failure.message) == ("refused", 'status 400: {"error": "this prompt is too long"}')


def test_a_judge_that_never_answers_ends_the_run() -> None:
    with serving(lambda _: chat("I am a teapot")) as endpoint:
        client = client_of(judge_at(endpoint))
        with pytest.raises(ConfigurationError, match="64 requests and not one answer; the last: the last line of the reply"):
            client.ask([QUESTION] * 100)


def test_what_an_api_does_not_know_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def play(asked: Asked) -> Says:
        if "max_tokens" in asked.body:
            return Says({"error": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}, 400)
        if "temperature" in asked.body:
            return Says({"error": "Unsupported value: 'temperature' does not support 0"}, 400)
        if "logprobs" in asked.body or "top_logprobs" in asked.body:
            return Says({"error": "You are not allowed to request logprobs from this model"}, 403)
        return chat("1")

    with serving(play) as endpoint:
        assert client_of(judge_at(endpoint)).ask([QUESTION] * 4) == [1.0] * 4
    body = endpoint.asked[-1].body
    assert body.keys() == {"model", "messages", "max_completion_tokens"}
    assert "preference.judge refuses parameters; leaving out or renaming logprobs, top_logprobs" in caplog.text


# --- limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_than_allowed_are_under_way(concurrency: int) -> None:
    with serving(lambda _: replace(chat("1"), after_seconds=0.05)) as endpoint:
        client_of(judge_at(endpoint, concurrency=concurrency)).ask([QUESTION] * 9)
    assert endpoint.most_at_once == concurrency


def test_requests_are_spaced_by_the_rate_limit() -> None:
    with serving(lambda _: chat("1")) as endpoint:
        client_of(judge_at(endpoint, requestsPerMinute=600)).ask([QUESTION] * 6)
    times = [each.time for each in endpoint.asked]
    assert times[-1] - times[0] >= 0.45


def test_nothing_is_asked_after_a_stop() -> None:
    with serving(lambda _: replace(chat("1"), after_seconds=0.1)) as endpoint:
        started = time.monotonic()
        with pytest.raises(Preempted):
            client_of(judge_at(endpoint, concurrency=1), stop=lambda: True).ask([QUESTION] * 100)
        assert time.monotonic() - started < 2
        assert len(endpoint.asked) <= 2


# --- the key --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "  ", None])
def test_a_key_that_is_not_there_is_named(key: str | None) -> None:
    judge = Judge(url="http://127.0.0.1:1", model="m", secret_ref=SECRET)  # pyright: ignore[reportArgumentType]
    environment = {} if key is None else {PREFERENCE_KEY: key}
    with pytest.raises(
        ConfigurationError, match=r"preference\.judge\.secretRef: the environment variable SPINRUN_PREFERENCE_KEY"
    ):
        build_reward_function(Preference(judge=judge), on_trouble=lambda _: None, stop=lambda: False, environment=environment)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    judge = Judge(url="http://127.0.0.1:1", model="m", secret_ref=SECRET)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="has characters that no key has") as raised:
        build_reward_function(
            Preference(judge=judge), on_trouble=lambda _: None, stop=lambda: False, environment={PREFERENCE_KEY: key}
        )
    assert key not in str(raised.value)


@pytest.mark.parametrize(
    "reply",
    [
        Says({"error": f"Incorrect API key provided: {KEY}"}, 401),
        Says(f"Authorization: Bearer {KEY}", 404),
        Says(KEY, 302, {"Location": f"http://127.0.0.1:1/?key={KEY}"}),
    ],
    ids=["401", "404", "redirect"],
)
def test_a_server_that_repeats_the_key_does_not_spread_it(reply: Says, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(lambda _: reply) as endpoint, pytest.raises(ConfigurationError) as raised:
        scorer_of(judge_at(endpoint, secretRef=SECRET))
    assert endpoint.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(raised.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize("reply", [Says(f"your key is {KEY}", 400), chat(KEY), Says(f"out of order: {KEY}", 500)])
def test_the_key_is_in_no_failure_and_no_trouble(reply: Says, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    troubles: list[str] = []
    with serving(lambda _: reply) as endpoint:
        judge = judge_at(endpoint, secretRef=SECRET)

        def told(trouble: str) -> None:
            troubles.append(trouble)
            endpoint.play = lambda _: chat("1")

        answers = client_of(judge, key=KEY, on_trouble=told).ask([QUESTION])
    assert KEY not in repr(answers) + repr(troubles) + caplog.text
    assert "***" in repr(answers) + repr(troubles)
