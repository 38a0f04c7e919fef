"""Rewards: what a rule says of each completion."""

from spinrun_worker.rewards.scorer import FailureCount, RuleScorer, ScoreResult, build_rule

__all__ = ["FailureCount", "RuleScorer", "ScoreResult", "build_rule"]
