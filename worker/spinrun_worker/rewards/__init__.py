"""Rewards: what a rule or a model says of each completion."""

from spinrun_worker.rewards.build import build_scorer
from spinrun_worker.rewards.scorer import RuleScorer, Scorer, build_rule
from spinrun_worker.rewards.verdict import FailureCount, ScoreResult

__all__ = ["FailureCount", "RuleScorer", "ScoreResult", "Scorer", "build_rule", "build_scorer"]
