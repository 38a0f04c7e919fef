"""Documents of small runs."""

import copy
from typing import Any

Json = dict[str, Any]


def letters_run(name: str, **spec: Any) -> Json:
    """A run that wants answers to begin with certain letters, as half of a random model's do; `spec` replaces or adds blocks."""
    blocks: Json = {
        "data": {
            "prompts": {"source": "arithmetic"},
            "evaluation": {"source": "arithmetic", "split": "test", "limit": 8},
            "maxPromptTokens": 128,
        },
        # About half of a random model's answers have one of these letters in their first characters.
        "preference": {"rule": {"kind": "regex", "pattern": "^.{0,3}[a-m]"}},
        "method": {"refUpdateFreq": 2},
        "rollout": {"samplesPerPrompt": 4, "maxTokens": 8},
    }
    metadata = {"name": name}
    return {"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": copy.deepcopy(blocks | spec)}


def method_before(**method: Any) -> Json:
    """A method as ledgers and API servers hold it from before the settings of a loss had a block: every default filled in."""
    defaults: Json = {
        "name": "onlineDPO",
        "loss": "sigmoid",
        "beta": 0.1,
        "labelSmoothing": 0.0,
        "ipoAverage": True,
        "includeSelf": True,
        "advantage": "prompt",
        "kappa": 1.0,
        "sftWeight": 0.0,
        "klWeight": 0.0,
        "lengthDesensitize": 1.0,
        "refUpdateFreq": 16,
        "replayWindows": 0,
        "overlap": 0,
        "referenceLogprobs": "trainer",
        "maxMismatch": 0.05,
        "pairing": "bestVsWorst",
        "minMargin": 0.0,
    }
    return defaults | method
