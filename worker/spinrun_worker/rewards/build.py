"""From the spec's preference to the scorer that it asks for."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spinrun_api.processes import PREFERENCE_KEY
from spinrun_api.spec import Judge, Preference, Ranker, RewardModel
from spinrun_worker.rewards.comparison import ComparingScorer, Comparison
from spinrun_worker.rewards.dialect import Dialect
from spinrun_worker.rewards.endpoint import Answer, EndpointClient, Question, checked_key
from spinrun_worker.rewards.judge import ChatDialect
from spinrun_worker.rewards.pooling import BATCH, BatchClient, ClassifyDialect, RewardModelScorer, ScoreDialect, Text
from spinrun_worker.rewards.scorer import Scorer, build_rule

SUM = Comparison("canary", "What is 1 + 1?", "2", "3")
"""Asked of an endpoint to learn whether it answers at all."""


def build_scorer(
    preference: Preference,
    *,
    on_trouble: Callable[[str], None],
    stop: Callable[[], bool],
    environment: Mapping[str, str] = os.environ,
) -> Scorer:
    """The scorer, once it has shown that it can be used.

    on_trouble: told why an endpoint is taken to be down, and "" when it is back. stop: whether to give up waiting for it.
    Raises ConfigurationError when pattern, entry point, url, model or key cannot be right.
    """
    connect = _Connect(preference, on_trouble, stop, environment.get(PREFERENCE_KEY))
    if preference.judge is not None:
        return _judge(preference.judge, connect)
    if preference.reward_model is not None:
        return _reward_model(preference.reward_model, connect)
    if preference.ranker is not None:
        return _ranker(preference.ranker, connect)
    assert preference.scoring is not None, "exactly one is set"
    return build_rule(preference.scoring)


@dataclass(frozen=True)
class _Connect:
    """Makes clients of the preference's endpoint."""

    preference: Preference
    on_trouble: Callable[[str], None]
    stop: Callable[[], bool]
    key: str | None

    def __call__(self, dialect: Dialect[Question, Answer], canary: Question) -> EndpointClient[Question, Answer]:
        """A client that has asked its canary. Raises ConfigurationError."""
        block, endpoint = f"preference.{self.preference.name}", self.preference.endpoint
        assert endpoint is not None, "the preference is by an endpoint"
        client = EndpointClient(
            block,
            endpoint,
            dialect,
            key=checked_key(self.key, endpoint, block=block, variable=PREFERENCE_KEY),
            canary=canary,
            on_trouble=self.on_trouble,
            stop=self.stop,
        )
        client.check()
        return client


def _judge(judge: Judge, connect: _Connect) -> Scorer:
    return ComparingScorer(connect(ChatDialect(judge), SUM), max_comparisons=judge.max_comparisons)


def _reward_model(model: RewardModel, connect: _Connect) -> Scorer:
    client: EndpointClient[Sequence[Text], list[float]] = connect(ClassifyDialect(model), [(SUM.prompt, SUM.first)])
    return RewardModelScorer(BatchClient(client, size=1 if model.template is None else BATCH))


def _ranker(ranker: Ranker, connect: _Connect) -> Scorer:
    client: EndpointClient[Sequence[Comparison], list[float]] = connect(ScoreDialect(ranker), [SUM])
    return ComparingScorer(BatchClient(client, size=BATCH), max_comparisons=ranker.max_comparisons)
