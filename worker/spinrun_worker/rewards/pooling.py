"""Models that give scores instead of text, through vLLM's pooling API: reward models (/classify) and rankers (/score).

Scores are requested as the model computes them, without the activation that a server would apply to them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field

from spinrun_api import spec
from spinrun_worker.records import Message
from spinrun_worker.rewards.comparison import Comparison
from spinrun_worker.rewards.dialect import Reply, Strict, UnusableReplyError
from spinrun_worker.rewards.endpoint import EndpointClient
from spinrun_worker.rewards.score import Failure, Groups, ScoreResult
from spinrun_worker.rewards.wording import as_text, filled, without_control_tokens

BATCH = 32
"""Questions in one request."""

Question = TypeVar("Question")
Text = tuple[Sequence[Message], str]
"""A conversation and an answer to it."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Numbered(Strict):
    index: int


class ClassScores(_Numbered):
    """The scores of one text: a reward model has one class, and so one score."""

    probs: list[Finite] = Field(min_length=1, max_length=1)


class ClassifyReply(Reply):
    """The part of a reply of /classify that matters here."""

    data: list[ClassScores] = Field(max_length=BATCH)


class PairScore(_Numbered):
    """The score of one pair of texts."""

    score: Finite


class ScoreReply(Reply):
    """The part of a reply of /score that matters here."""

    data: list[PairScore] = Field(max_length=BATCH)


class ClassifyDialect:
    """Asks a reward model to score texts, or one conversation, for which the server has the model's template."""

    path = "/classify"

    def __init__(self, model: spec.RewardModel) -> None:
        self._model = model

    def body(self, question: Sequence[Text]) -> dict[str, Any]:
        """The body of a request. Without a template it holds one question."""
        if self._model.template is not None:
            asked: dict[str, Any] = {
                "input": [filled(self._model.template, prompt=as_text(messages), answer=answer) for messages, answer in question]
            }
        else:
            ((messages, answer),) = question
            asked = {"messages": [*messages, {"role": "assistant", "content": without_control_tokens(answer)}]}
        return {"model": self._model.served_name, "use_activation": False, **asked}

    def read(self, question: Sequence[Text], content: bytes) -> list[float]:
        """The rewards, in the order of the question. Raises as Dialect.read does."""
        reply = ClassifyReply.model_validate_json(content)
        return [scores.probs[0] for scores in in_order(reply.data, len(question))]

    def adapt(self, complaint: str) -> None:
        """Nothing in the request is dispensable."""


class ScoreDialect:
    """Asks a ranker which of two answers is better: the logistic function of its score is the probability of the first."""

    path = "/score"

    def __init__(self, ranker: spec.Ranker) -> None:
        self._ranker = ranker

    def body(self, question: Sequence[Comparison]) -> dict[str, Any]:
        """The body of a request."""
        return {
            "model": self._ranker.served_name,
            "use_activation": False,
            "text_1": [filled(self._ranker.first_template, prompt=each.prompt, answer=each.first) for each in question],
            "text_2": [filled(self._ranker.second_template, prompt=each.prompt, answer=each.second) for each in question],
        }

    def read(self, question: Sequence[Comparison], content: bytes) -> list[float]:
        """The probabilities, in the order of the question. Raises as Dialect.read does."""
        reply = ScoreReply.model_validate_json(content)
        return [0.5 + 0.5 * math.tanh(pair.score / 2) for pair in in_order(reply.data, len(question))]

    def adapt(self, complaint: str) -> None:
        """Nothing in the request is dispensable."""


NumberedT = TypeVar("NumberedT", bound=_Numbered)


def in_order(data: Sequence[NumberedT], count: int) -> list[NumberedT]:
    """The entries of a reply, sorted by index.

    Raises:
        UnusableReplyError: There is not exactly one entry for each index below `count`.
    """
    by_index = {each.index: each for each in data}
    if len(data) != count or by_index.keys() != set(range(count)):
        raise UnusableReplyError(f"{count} scores were requested, and {len(data)} came, numbered {sorted(by_index)[:8]}")
    return [by_index[index] for index in range(count)]


class BatchClient(Generic[Question]):
    """Sends many questions in one request. One that the server refuses costs no other its answer."""

    def __init__(self, client: EndpointClient[Sequence[Question], list[float]], *, size: int) -> None:
        """Prepare, and send nothing yet.

        Args:
            client: Sends the requests.
            size: Questions in one request.
        """
        self._client = client
        self._size = size

    @property
    def counts(self) -> Mapping[str, int]:
        """What the client counts: requests, not questions."""
        return self._client.counts

    def ask(self, questions: Sequence[Question]) -> list[float | Failure]:
        """A score for each question, or why there is none. Raises as EndpointClient.ask does."""
        return self._ask(questions, self._size)

    def _ask(self, questions: Sequence[Question], size: int) -> list[float | Failure]:
        batches = [questions[start : start + size] for start in range(0, len(questions), size)]
        replies = self._client.ask(batches)
        failed = [batch for batch, reply in zip(batches, replies, strict=True) if isinstance(reply, Failure) and len(batch) > 1]
        alone = iter(self._ask([question for batch in failed for question in batch], 1) if failed else ())
        answers: list[float | Failure] = []
        for batch, reply in zip(batches, replies, strict=True):
            if not isinstance(reply, Failure):
                answers += reply
            else:
                answers += [reply] if len(batch) == 1 else [next(alone) for _ in batch]
        return answers


class ModelReward:
    """Rewards an answer with a reward model's score of it."""

    def __init__(self, client: BatchClient[Text]) -> None:
        self._client = client

    @property
    def counts(self) -> Mapping[str, int]:
        """What the client counts."""
        return self._client.counts

    def score(self, groups: Groups) -> ScoreResult:
        """Reward every sample of every prompt. Raises as EndpointClient.ask does."""
        asked = [(prompt.messages, sample.text) for prompt, samples in groups for sample in samples]
        return ScoreResult.of(groups, self._client.ask(asked))

    def grade(self, groups: Groups) -> ScoreResult:
        """The same: a reward model looks at each answer on its own."""
        return self.score(groups)

    def close(self) -> None:
        """Nothing to free."""
