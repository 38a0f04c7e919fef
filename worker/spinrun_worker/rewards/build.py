"""From the spec's preference to the reward function that it asks for."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from spinrun_api.spec import Judge, Preference, Ranker, RewardModel, ScoringModel
from spinrun_protocol.environment import PREFERENCE_KEY, SCORERS
from spinrun_worker.bearer import read_token
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.rewards.comparison import Comparison, WinRateReward
from spinrun_worker.rewards.dialect import Dialect
from spinrun_worker.rewards.endpoint import Answer, EndpointClient, Question, Server, checked_key
from spinrun_worker.rewards.function import RewardFunction, build_rule
from spinrun_worker.rewards.judge import ChatDialect
from spinrun_worker.rewards.pooling import BATCH, BatchClient, ClassifyDialect, ModelReward, ScoreDialect, Text
from spinrun_worker.rewards.source import check_source

AnyEndpoint = Judge | RewardModel | Ranker

NO_ARGUMENTS: Mapping[str, str | int] = MappingProxyType({})

SUM = Comparison("canary", "What is 1 + 1?", "2", "3")
"""Sent to an endpoint to learn whether it answers at all."""


OWN_REFUSALS = {
    401: "refuses the run's token: the run's Secret has changed since its pods started; delete them",
    403: "refuses the run's token: the run's Secret has changed since its pods started; delete them",
    404: "serves the source, but not as a classifier: name a sequence classifier with one class as source",
}
"""What statuses of the run's own scorers mean."""


def build_reward_function(
    preference: Preference,
    *,
    on_trouble: Callable[[str], None],
    stop: Callable[[], bool],
    environment: Mapping[str, str] = os.environ,
    engine_args: Mapping[str, str | int] = NO_ARGUMENTS,
) -> RewardFunction:
    """The reward function that the preference asks for, once it has shown that it can be used.

    Args:
        preference: The spec's block.
        on_trouble: Told why an endpoint is considered down, and "" when it is back.
        stop: Whether to give up waiting for an endpoint.
        environment: Where key, token and the addresses of the run's own scorers are.
        engine_args: Arguments of vLLM in the run's own scorers.

    Raises:
        ConfigurationError: Pattern, entry point, url, source, model or key cannot be right.
    """
    connect = _Connect(preference, on_trouble, stop, environment, engine_args)
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
    environment: Mapping[str, str]
    engine_args: Mapping[str, str | int]

    def __call__(
        self, endpoint: AnyEndpoint, dialect: Dialect[Question, Answer], canary: Question
    ) -> EndpointClient[Question, Answer]:
        """A client whose canary has been answered, or whose server is down for now. Raises ConfigurationError."""
        block, own_model = f"preference.{self.preference.name}", self.preference.own_model
        client = EndpointClient(
            endpoint,
            dialect,
            server=self._server(block, endpoint) if own_model is None else self._own_servers(block, own_model),
            canary=canary,
            on_trouble=self.on_trouble,
            stop=self.stop,
        )
        client.check()
        return client

    def _server(self, block: str, endpoint: AnyEndpoint) -> Server:
        """The server at the spec's url."""
        assert endpoint.url is not None, "it has no source"
        key = checked_key(self.environment.get(PREFERENCE_KEY), endpoint, block=block, variable=PREFERENCE_KEY)
        return Server(block, (endpoint.url,), key)

    def _own_servers(self, block: str, model: ScoringModel) -> Server:
        """The run's scorers. Raises ConfigurationError when their model is not a classifier, or their addresses are missing."""
        check_source(block, model, self.engine_args)
        addresses = self.environment.get(SCORERS, "")
        if not addresses:
            raise ConfigurationError(f"{SCORERS} must be set: the URLs of the run's scorers")
        token = read_token(self.environment)
        return Server(block, tuple(addresses.split(",")), token, fields="source", refusals=OWN_REFUSALS, is_remote=False)


def _judge(judge: Judge, connect: _Connect) -> RewardFunction:
    return WinRateReward(connect(judge, ChatDialect(judge), SUM), max_comparisons=judge.max_comparisons)


def _reward_model(model: RewardModel, connect: _Connect) -> RewardFunction:
    client: EndpointClient[Sequence[Text], list[float]] = connect(
        model, ClassifyDialect(model), [(({"role": "user", "content": SUM.prompt},), SUM.first)]
    )
    return ModelReward(BatchClient(client, size=1 if model.template is None else BATCH))


def _ranker(ranker: Ranker, connect: _Connect) -> RewardFunction:
    client: EndpointClient[Sequence[Comparison], list[float]] = connect(ranker, ScoreDialect(ranker), [SUM])
    return WinRateReward(BatchClient(client, size=BATCH), max_comparisons=ranker.max_comparisons)
