"""The spec of a SpinRun: what a user writes. A module for each block, and `spec.py` for the whole.

`crd.py` turns these models into the CustomResourceDefinition; each rule brings its CEL expression for it, and a test feeds
the same invalid documents to both.
"""

from spinrun_api.spec.data import DATA_SUFFIXES, GENERATORS, Data, Evaluation, MixedSource, Order, Prompts, Source
from spinrun_api.spec.lifecycle import Duration, FailureRule, Lifecycle
from spinrun_api.spec.method import (
    Cringe,
    Discopop,
    Dpop,
    Exo,
    Grpo,
    Hinge,
    Ipo,
    Method,
    Orpo,
    PassRateBand,
    Robust,
    SamplingSettings,
    Sigmoid,
    Simpo,
    Sppo,
    SppoAdvantage,
    WeightedLoss,
    of_window,
)
from spinrun_api.spec.model import Model
from spinrun_api.spec.network import Network
from spinrun_api.spec.preference import (
    JUDGE_TEMPLATE,
    Endpoint,
    GroundTruth,
    Judge,
    Preference,
    Ranker,
    RewardModel,
    Rule,
    RuleKind,
    ScoringModel,
    Truncated,
)
from spinrun_api.spec.rollout import Rollout, Scorer
from spinrun_api.spec.spec import SpinRunSpec
from spinrun_api.spec.storage import Storage
from spinrun_api.spec.telemetry import Mlflow, Telemetry, Tensorboard, Wandb
from spinrun_api.spec.trainer import Lora, Trainer
from spinrun_api.spec.types import SecretKey

__all__ = [
    "DATA_SUFFIXES",
    "GENERATORS",
    "JUDGE_TEMPLATE",
    "Cringe",
    "Data",
    "Discopop",
    "Dpop",
    "Duration",
    "Endpoint",
    "Evaluation",
    "Exo",
    "FailureRule",
    "GroundTruth",
    "Grpo",
    "Hinge",
    "Ipo",
    "Judge",
    "Lifecycle",
    "Lora",
    "Method",
    "MixedSource",
    "Mlflow",
    "Model",
    "Network",
    "Order",
    "Orpo",
    "PassRateBand",
    "Preference",
    "Prompts",
    "Ranker",
    "RewardModel",
    "Robust",
    "Rollout",
    "Rule",
    "RuleKind",
    "SamplingSettings",
    "Scorer",
    "ScoringModel",
    "SecretKey",
    "Sigmoid",
    "Simpo",
    "Source",
    "SpinRunSpec",
    "Sppo",
    "SppoAdvantage",
    "Storage",
    "Telemetry",
    "Tensorboard",
    "Trainer",
    "Truncated",
    "Wandb",
    "WeightedLoss",
    "of_window",
]
