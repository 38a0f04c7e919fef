"""The recipes of examples/ in a small form on CPUs: two windows with a tiny model, through everything real.

Not part of `make test`: `make examples-smoke`. What a recipe says of method, sampling and optimizer stays; model, data and sizes
become small ones.
"""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spinrun_worker.ledger import read_metrics, verify_tree
from support.models import tiny_classifier, tiny_llama

pytestmark = pytest.mark.timeout(900)

Json = dict[str, Any]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# These are about clusters; what they train is what gsm8k-gpu and quickstart train.
ABOUT_CLUSTERS = {"existing-claim", "kueue", "multi-node", "private-registry", "quickstart", "demo"}
RECIPES = sorted(path for path in EXAMPLES.glob("*.yaml") if path.stem not in ABOUT_CLUSTERS)
WINDOWS = 2
OWN_MODELS = ("rewardModel", "ranker")
"""Preferences that the run serves itself in every recipe that has one."""
# About half of a random model's answers have one of these letters in their first characters; none is right.
RULE: Json = {"kind": "regex", "pattern": "^.{0,3}[a-m]"}


def small_form(document: Json, model: Path, classifier: Path) -> Json:
    """The same recipe for a tiny model that answers in eight tokens, ranked by a rule or by a tiny classifier."""
    spec = copy.deepcopy(document["spec"])
    spec["model"] = {"source": str(model), "dtype": "float32"}
    spec["data"] = {
        "prompts": {"source": "arithmetic"},
        "evaluation": {"source": "arithmetic", "split": "test", "limit": 8},
        "maxPromptTokens": 128,
    }
    (preference,) = spec["preference"]
    if preference == "rule":
        spec["preference"] = {"rule": RULE}
    elif preference in OWN_MODELS:
        spec["preference"][preference]["source"] = str(classifier)
        spec["scorer"] = {}
    method = spec.setdefault("method", {})
    method["refUpdateFreq"] = 2
    method.pop("rolloutUpdateFreq", None)
    spec["rollout"] = {
        name: spec["rollout"][name] for name in ("samplesPerPrompt", "temperature", "topP") if name in spec["rollout"]
    }
    spec["rollout"]["maxTokens"] = 8
    trainer = spec["trainer"]
    for name in ("nodes", "procsPerNode", "template"):
        trainer.pop(name, None)
    trainer |= {"promptsPerStep": 8, "tokensPerMicroBatch": 512}
    spec["duration"] = {"windows": WINDOWS}
    for name in ("storage", "lifecycle"):
        spec.pop(name, None)
    return document | {"spec": spec}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_trains_two_windows(recipe: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(recipe.read_text())
    preference = document["spec"]["preference"]
    if not preference.keys() & {"rule", "groundTruth", *OWN_MODELS}:
        pytest.skip(f"{recipe.name} asks a model that is served elsewhere")
    classifier = tiny_classifier(tmp_path / "classifier", seed=5)
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(small_form(document, tiny_llama(tmp_path / "model"), classifier)))
    command = [sys.executable, "-m", "spinrun_cli.main", "local", run, "--output", tmp_path / "run"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=800)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ledger = tmp_path / "run" / "ledger"
    assert {finding.state for finding in verify_tree(ledger)} == {"committed"}
    windows = [line for line in read_metrics(ledger / "metrics.jsonl") if line.event == "window"]
    assert [line.window for line in windows] == list(range(WINDOWS))
    assert all(line.values["pairs"] > 0 for line in windows)
