"""Rewards: how a rule or a model scores each completion.

function    RewardFunction, and the one of rules     comparison   win rates: judges and rankers
rules       functions of texts                       sandbox      processes that run math and the user's rules
endpoint    a server that scores                     dialect      how it is asked: judge (chat), pooling (vLLM)
wording     conversations and answers in a template
build       from the spec to a reward function       source       checks a model that the run serves itself
score       a reward, or why there is none
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinrun_worker.rewards.build import build_reward_function
    from spinrun_worker.rewards.function import RewardFunction, RuleReward, build_rule
    from spinrun_worker.rewards.score import FailureCount, ScoreResult

__all__ = ["FailureCount", "RewardFunction", "RuleReward", "ScoreResult", "build_reward_function", "build_rule"]

_HOMES = {"build_reward_function": "build", "FailureCount": "score", "ScoreResult": "score"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: a sandbox's process imports this package too, and must start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'function')}"), name)
