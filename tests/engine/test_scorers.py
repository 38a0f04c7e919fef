"""Preferences from a real vLLM: what judge, reward model and ranker make of it is what the models compute."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from spinrun_api.documents import parse_run
from spinrun_api.run import SpinRun
from spinrun_api.spec import Judge, Preference
from spinrun_protocol import commands
from spinrun_protocol.environment import SCORERS, TOKEN_FILE
from spinrun_protocol.wire import Sample
from spinrun_worker.records import Message, PromptRecord
from spinrun_worker.rewards import build_reward_function
from support.engines import ServerProcess, VllmServer, running_vllm, tiny_run
from support.models import tiny_classifier, tiny_llama
from support.ports import free_port
from support.rollouts import TOKEN

pytestmark = pytest.mark.engine

TEMPLATE = "{prompt}|{first}|{second}"


def rendered(folder: Path, prompt: str, first: str, second: str) -> torch.Tensor:
    """The token ids of a judge's question."""
    text = TEMPLATE.replace("{prompt}", prompt).replace("{first}", first).replace("{second}", second)
    messages = [{"role": "user", "content": text}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose last layer says 1 or 2 and hardly anything else, so that its replies are verdicts."""
    folder = tiny_llama(tmp_path_factory.mktemp("judge") / "model", seed=3, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        one, other = (model.model(rendered(folder, *texts)).last_hidden_state[0, -1] for texts in (("a", "b", "c"), "xyz"))
        middle = (one + other) / 2
        towards = 8 * middle / middle.norm() ** 2
        # What tells the two questions apart, and nothing of what they have in common.
        difference = one - other
        difference -= middle * (difference @ middle) / middle.norm() ** 2
        opinion = 3 * difference / difference.norm() ** 2
        model.lm_head.weight.zero_()
        for token, row in (("1", towards + opinion), ("2", towards - opinion)):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = row
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(judge_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[VllmServer]:
    with running_vllm(tiny_run(judge_model), tmp_path_factory.mktemp("judge-vllm") / "log") as server:
        yield server


def probability(folder: Path, prompt: str, first: str, second: str) -> float:
    """Of 1 against 2 as the next token, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    one, two = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["1", "2"])
    with torch.no_grad():
        logits = model(rendered(folder, prompt, first, second)).logits[0, -1]
    return torch.sigmoid(logits[one] - logits[two]).item()


def test_win_rates_are_the_probabilities_of_the_model_averaged_over_both_orders(
    judge: VllmServer, judge_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    block = Judge(url=f"{judge.url}/v1", model="policy", template=TEMPLATE, max_tokens=1)
    scorer = build_reward_function(Preference(judge=block), on_trouble=lambda _: None, stop=lambda: False)
    texts = ("four", "2 + 2", "nobody knows")

    def outcome(one: str, other: str) -> float:
        straight, swapped = probability(judge_model, "sum?", one, other), probability(judge_model, "sum?", other, one)
        return (straight + 1 - swapped) / 2

    group = tuple(Sample(tokens=(index,), text=text, finish_reason="stop") for index, text in enumerate(texts))
    result = scorer.score([(PromptRecord("p", (1,), "sum?"), group)])

    wins = [[outcome(one, other) for other in texts if other != one] for one in texts]
    want = [sum(each) / 2 for each in wins]
    assert result.messages == []
    assert result.rewards[0] == pytest.approx(want, abs=1e-3)
    assert max(want) - min(want) > 0.01, "the model has no opinion, so that the test shows nothing"
    assert scorer.counts["completion_tokens"] == 7
    assert scorer.counts["prompt_tokens"] > 7 * 10


# --- a classifier, as a reward model and as a ranker ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("classifier") / "model", seed=5)


def run_with_scorers(preference: dict[str, object], **scorer: object) -> SpinRun:
    document = tiny_run(Path("/models/policy")).to_document()
    document["spec"] |= {"preference": preference, "scorer": scorer}
    return parse_run(document)


@dataclass(frozen=True)
class Scorers:
    """A vLLM as the run starts it for its classifier, and the agent that stands in front of it in pods."""

    vllm: ServerProcess
    agent: ServerProcess
    environment: dict[str, str]
    """What the trainer is told of them."""


@pytest.fixture(scope="module")
def scorers(classifier_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Scorers]:
    folder, ports = tmp_path_factory.mktemp("scorer"), (free_port(), free_port())
    (folder / "token").write_text(TOKEN)
    run = run_with_scorers({"ranker": {"source": str(classifier_model)}})
    process = commands.scorer(run, accelerator="cpu", dtype="float32", port=ports[0])
    environment = {"HF_HUB_OFFLINE": "1", TOKEN_FILE: str(folder / "token")}
    vllm = ServerProcess(process, port=ports[0], health="/health", log=folder / "vllm.log", environment=environment)
    process = commands.scorer_agent(port=ports[1], vllm_port=ports[0], host="127.0.0.1")
    agent = ServerProcess(process, port=ports[1], health="/readyz", log=folder / "agent.log", environment=environment)
    vllm.start()
    agent.start()
    try:
        agent.wait_until_up()
        yield Scorers(vllm, agent, environment | {SCORERS: agent.url})
    finally:
        agent.stop()
        vllm.stop()


def number(folder: Path, token_ids: list[int]) -> float:
    """What the classifier says of the tokens, by transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0, 0].item()


def score_of(
    preference: dict[str, object], scorers: Scorers, prompt: str, *texts: str, conversation: Sequence[Message] = ()
) -> tuple[float | None, ...]:
    scorer = build_reward_function(
        Preference.model_validate(preference),
        on_trouble=lambda _: None,
        stop=lambda: False,
        environment=scorers.environment,
    )
    group = tuple(Sample(tokens=(index,), text=text, finish_reason="stop") for index, text in enumerate(texts))
    result = scorer.score([(PromptRecord("p", (1,), prompt, conversation=tuple(conversation)), group)])
    assert result.messages == []
    return result.rewards[0]


TEXTS = ("four", "2 + 2", "nobody knows")


def test_rewards_are_the_numbers_of_the_model_for_conversations(scorers: Scorers, classifier_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier_model)

    def want(text: str) -> float:
        messages = [{"role": "user", "content": "sum?"}, {"role": "assistant", "content": text}]
        return number(classifier_model, tokenizer.apply_chat_template(messages, return_dict=False))

    wanted = [want(text) for text in TEXTS]
    rewards = score_of({"rewardModel": {"source": str(classifier_model)}}, scorers, "sum?", *TEXTS)

    assert rewards == pytest.approx(wanted, abs=1e-3)
    assert max(wanted) - min(wanted) > 0.01, "the model has no opinion, so that the test shows nothing"


def test_rewards_are_for_the_whole_conversation(scorers: Scorers, classifier_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier_model)
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "sum?"},
    ]

    def want(text: str) -> float:
        messages = [*conversation, {"role": "assistant", "content": text}]
        return number(classifier_model, tokenizer.apply_chat_template(messages, return_dict=False))

    block: dict[str, object] = {"rewardModel": {"source": str(classifier_model)}}
    rewards = score_of(block, scorers, "sum?", *TEXTS, conversation=conversation)

    assert rewards == pytest.approx([want(text) for text in TEXTS], abs=1e-3)
    assert rewards != pytest.approx(score_of(block, scorers, "sum?", *TEXTS), abs=1e-3)


def test_rewards_are_the_numbers_of_the_model_for_texts_of_a_template(scorers: Scorers, classifier_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier_model)
    block = {"source": str(classifier_model), "template": "{prompt} -> {answer}"}

    rewards = score_of({"rewardModel": block}, scorers, "sum?", *TEXTS)

    assert rewards == pytest.approx([number(classifier_model, tokenizer.encode(f"sum? -> {text}")) for text in TEXTS], abs=1e-3)


def test_win_rates_of_a_ranker_are_logistic_functions_of_the_scores_of_both_orders(
    scorers: Scorers, classifier_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier_model)

    def first_is_better(one: str, other: str) -> float:
        score = number(classifier_model, tokenizer(f"sum?\n\n{one}", text_pair=other)["input_ids"])
        return torch.sigmoid(torch.tensor(score)).item()

    def outcome(one: str, other: str) -> float:
        return (first_is_better(one, other) + 1 - first_is_better(other, one)) / 2

    wanted = [sum(outcome(one, other) for other in TEXTS if other != one) / 2 for one in TEXTS]
    rates = score_of({"ranker": {"source": str(classifier_model)}}, scorers, "sum?", *TEXTS)

    assert rates == pytest.approx(wanted, abs=1e-3)
    assert max(wanted) - min(wanted) > 0.01, "the model has no opinion, so that the test shows nothing"


def test_a_vllm_elsewhere_is_asked_by_its_url_without_an_agent(
    scorers: Scorers, classifier_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    elsewhere = {"url": scorers.vllm.url, "model": str(classifier_model), "template": "{prompt} -> {answer}"}
    own = {"source": str(classifier_model), "template": "{prompt} -> {answer}"}

    rewards = [score_of({"rewardModel": block}, scorers, "sum?", *TEXTS) for block in (elsewhere, own)]

    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)


def test_the_agent_lets_nobody_in_without_the_token_and_shows_vllms_metrics(scorers: Scorers, classifier_model: Path) -> None:
    body = {"model": str(classifier_model), "input": ["a"]}
    assert httpx.post(f"{scorers.agent.url}/classify", json=body).status_code == 401
    with_token = httpx.post(f"{scorers.agent.url}/classify", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert with_token.status_code == 200
    # Why there is an agent: vLLM's own key guards only what is below /v1.
    for token, status in ((None, 401), (TOKEN, 404)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        assert httpx.get(f"{scorers.agent.url}/v1/models", headers=headers).status_code == status
    assert "vllm:" in httpx.get(f"{scorers.agent.url}/metrics").text


def test_a_language_model_is_no_ranker_to_vllm_even_if_it_is_told_otherwise(tmp_path: Path) -> None:
    # It would make embeddings of it, and score texts by how alike they are: every comparison a draw.
    writer = tiny_llama(tmp_path / "writer")
    run = run_with_scorers({"ranker": {"source": str(writer)}})
    port = free_port()
    process = commands.scorer(run, accelerator="cpu", dtype="float32", port=port)
    server = ServerProcess(process, port=port, health="/health", log=tmp_path / "log", environment={"HF_HUB_OFFLINE": "1"})
    server.start()
    try:
        assert server.wait(240) != 0
    finally:
        server.stop()
    assert "Unsupported task: 'classify'" in server.log.read_text()
