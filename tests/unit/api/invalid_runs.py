"""Documents that are not valid SpinRuns: the CRD and parse_run must refuse each, and name the same field."""

import copy
from dataclasses import dataclass
from typing import Any, get_args

from spinrun_api.spec import Method
from spinrun_api.spec.method import LOSS_BLOCKS, MOVED

Json = dict[str, Any]

LOSSES: tuple[str, ...] = get_args(Method.model_fields["loss"].annotation)

MINIMAL: Json = {
    "apiVersion": "spinrun.dev/v1alpha1",
    "kind": "SpinRun",
    "metadata": {"name": "demo"},
    "spec": {
        "model": {"source": "/models/tiny"},
        "data": {"prompts": {"source": "arithmetic"}},
        "preference": {"rule": {"kind": "lastNumber"}},
        "storage": {"size": "1Gi"},
    },
}
"""The smallest document that is valid without a default for the storage."""

MISSING = object()
"""Stands for the absence of a field."""


@dataclass(frozen=True)
class Invalid:
    """One way to be wrong: fields to set, by their dotted path, and the field that must be named."""

    changes: Json
    field: str

    def document(self) -> Json:
        """The invalid document."""
        document = copy.deepcopy(MINIMAL)
        for path, value in self.changes.items():
            *parents, last = path.split(".")
            block = document
            for parent in parents:
                block = block.setdefault(parent, {})
            if value is MISSING:
                block.pop(last)
            else:
                block[last] = value
        return document


JUDGE: Json = {"url": "https://judge/v1", "model": "wise"}
SCORES: Json = {"url": "http://scores:8000", "model": "stern"}
OWN: Json = {"source": "org/stern"}
SPPO: Json = {"name": "sppo", "loss": "sppo"}
ADVANTAGE: Json = {"name": "sppo", "loss": "sppoAdvantage"}

GRPO: Json = {"name": "grpo", "loss": "grpo"}

WINDOWS: Json = {"spec__duration": {"windows": 2}}
ROWS: Json = {"source": "/data/rows.jsonl", "answerColumn": "answer"}
OTHER_ROWS: Json = {"source": "openai/gsm8k", "config": "main", "answerColumn": "answer"}

LOSS_WITH_ITS_METHOD: dict[str, Json] = {loss: {"loss": loss} for loss in LOSSES} | {
    "sppo": SPPO,
    "sppoAdvantage": ADVANTAGE,
    "grpo": GRPO,
}
"""For each loss the method that takes it."""


def wrong(path: str, value: Any, field: str | None = None, **further: Any) -> Invalid:
    """One field with a wrong value; further fields have double underscores for the dots of their paths."""
    changes = {name.replace("__", "."): given for name, given in further.items()}
    return Invalid({path: value} | changes, field or path)


INVALID: dict[str, Invalid] = {
    # Names, from which those of the children are made.
    "name-too-long": wrong("metadata.name", "a" * 41),
    "name-with-a-digit-in-front": wrong("metadata.name", "1run"),
    "name-with-a-dot": wrong("metadata.name", "my.run"),
    # What is missing or unknown.
    "no-spec": wrong("spec", MISSING),
    "no-model": wrong("spec.model", MISSING),
    "no-source": wrong("spec.model.source", MISSING),
    "no-prompts": wrong("spec.data.prompts", MISSING),
    "no-preference": wrong("spec.preference", {}),
    "two-preferences": wrong("spec.preference.groundTruth", {}, "spec.preference"),
    "no-kind-of-rule": wrong("spec.preference.rule.kind", MISSING),
    "unknown-block": wrong("spec.rollouts", {}),
    "unknown-field": wrong("spec.rollout.replica", 2),
    "unknown-field-deep-down": wrong("spec.data.evaluation", {"source": "arithmetic", "every": 2}, "spec.data.evaluation.every"),
    "no-model-of-a-judge": wrong("spec.preference", {"judge": {"url": "https://judge/v1"}}, "spec.preference.judge.model"),
    "no-url-of-a-reward-model": wrong("spec.preference", {"rewardModel": {"model": "stern"}}, "spec.preference.rewardModel"),
    "no-model-of-a-ranker": wrong("spec.preference", {"ranker": {"url": "http://scores"}}, "spec.preference.ranker"),
    "judge-and-ranker": wrong("spec.preference", {"judge": JUDGE, "ranker": SCORES}, "spec.preference"),
    "reward-model-and-ranker": wrong("spec.preference", {"rewardModel": SCORES, "ranker": SCORES}, "spec.preference"),
    "rule-and-judge": wrong("spec.preference.judge", JUDGE, "spec.preference"),
    # Values of another type: nothing is converted.
    "text-for-a-number": wrong("spec.method.beta", "0.1"),
    "text-for-an-integer": wrong("spec.rollout.replicas", "2"),
    "fraction-for-an-integer": wrong("spec.rollout.replicas", 1.5),
    "truth-for-an-integer": wrong("spec.rollout.replicas", True),
    "text-for-truth": wrong("spec.storage.retain", "true"),
    "number-for-text": wrong("spec.model.revision", 7),
    "list-for-a-block": wrong("spec.trainer", []),
    "text-for-a-pod-template": wrong("spec.trainer.template", "resources"),
    "text-for-a-list": wrong("spec.storage.accessModes", "ReadWriteMany"),
    # Ranges and enumerations.
    "empty-source": wrong("spec.model.source", ""),
    "source-too-long": wrong("spec.model.source", "x" * 1025),
    "unknown-dtype": wrong("spec.model.dtype", "int8"),
    "beta-zero": wrong("spec.method.beta", 0),
    "beta-negative": wrong("spec.method.beta", -0.1),
    "beta-too-large": wrong("spec.method.beta", 1001),
    "label-smoothing-above-one-half": wrong("spec.method.sigmoid.labelSmoothing", 0.51),
    "label-smoothing-negative": wrong("spec.method.sigmoid.labelSmoothing", -0.1),
    "unknown-divergence": wrong("spec.method.sigmoid.divergence", "chiSquared"),
    "divergence-alpha-of-one": wrong("spec.method.sigmoid", {"divergence": "alpha", "alpha": 1}, "spec.method.sigmoid.alpha"),
    "alpha-of-another-divergence": wrong("spec.method.sigmoid", {"divergence": "js", "alpha": 0.5}, "spec.method.sigmoid"),
    "alpha-without-a-divergence": wrong(
        "spec.method.hinge", {"alpha": 0.5}, "alpha is for the divergence alpha", spec__method__loss="hinge"
    ),
    "discopop-too-slow": wrong("spec.method.discopop.tau", 1.5, spec__method__loss="discopop"),
    "exo-prefers-the-rejected": wrong("spec.method.exo.floor", 0.5, spec__method__loss="exo"),
    "dpop-negative": wrong("spec.method.dpop.weight", -1, spec__method__loss="dpop"),
    "pairs-per-step-zero": wrong("spec.trainer.pairsPerStep", 0),
    "pass-rate-above-one": wrong("spec.method.sampling.passRate.max", 1.1, **WINDOWS),
    "pass-rates-below-none": wrong("spec.method.sampling.passRate.min", -0.1, **WINDOWS),
    "no-epoch-before-a-retry": wrong("spec.method.sampling.passRate.retryAfterEpochs", 0, **WINDOWS),
    "bounds-that-are-not-widened": wrong("spec.method.sampling.passRate.widenBy", 0.0, **WINDOWS),
    "unknown-way-out": wrong("spec.method.sampling.passRate.whenNone", "wait", **WINDOWS),
    "weight-zero": wrong("spec.data.prompts", {"sources": [ROWS | {"weight": 0.0}]}, "weight"),
    "weight-below-zero": wrong("spec.data.prompts", {"sources": [ROWS, OTHER_ROWS | {"weight": -1.0}]}, "weight"),
    "no-source-in-sources": wrong("spec.data.prompts", {"sources": []}, "sources"),
    "unknown-direction": wrong("spec.data.prompts.order", {"column": "level", "direction": "up"}, "direction"),
    "order-without-a-column": wrong("spec.data.prompts.order", {}, "column"),
    "prompts-factor-below-one": wrong("spec.method.sampling.maxPromptsFactor", 0.5),
    "flipped-labels-one-half": wrong("spec.method.robust.labelSmoothing", 0.5, spec__method__loss="robust"),
    "reference-updated-backwards": wrong("spec.method.refUpdateFreq", -1),
    "window-without-steps": wrong("spec.method.rolloutUpdateFreq", 0),
    "beta-of-a-window-zero": wrong("spec.method.betaByWindow", [0.1, 0]),
    "beta-of-no-window": wrong("spec.method.betaByWindow", []),
    "replay-of-the-future": wrong("spec.method.replayWindows", -1),
    "unknown-method": wrong("spec.method.name", "ppo"),
    "sft-weight-negative": wrong("spec.method.sftWeight", -0.1),
    "kl-weight-negative": wrong("spec.method.klWeight", -0.1),
    "length-desensitize-negative": wrong("spec.method.lengthDesensitize", -0.1),
    "length-desensitize-above-one": wrong("spec.method.lengthDesensitize", 1.1),
    "cringe-without-weight": wrong("spec.method.cringe", {"weight": 0}, "spec.method.cringe.weight", spec__method__loss="cringe"),
    "cringe-gate-without-width": wrong(
        "spec.method.cringe", {"temperature": 0}, "spec.method.cringe.temperature", spec__method__loss="cringe"
    ),
    "cringe-among-none": wrong("spec.method.cringe", {"topK": 0}, "spec.method.cringe.topK", spec__method__loss="cringe"),
    "min-margin-negative": wrong("spec.method.minMargin", -1),
    "min-margin-without-limit": wrong("spec.method.minMargin", 1e10),
    "kappa-negative": wrong("spec.method", ADVANTAGE | {"sppoAdvantage": {"kappa": -1}}, "spec.method.sppoAdvantage.kappa"),
    "unknown-advantage": wrong(
        "spec.method", ADVANTAGE | {"sppoAdvantage": {"advantage": "window"}}, "spec.method.sppoAdvantage.advantage"
    ),
    "unknown-setting-of-a-loss": wrong("spec.method.sigmoid", {"average": True}, "spec.method.sigmoid.average"),
    "unknown-loss": wrong("spec.method.loss", "hinge2"),
    "unknown-pairing": wrong("spec.method.pairing", "random"),
    "no-sample": wrong("spec.rollout.samplesPerPrompt", 0),
    "temperature-zero": wrong("spec.rollout.temperature", 0),
    "top-p-zero": wrong("spec.rollout.topP", 0),
    "top-p-above-one": wrong("spec.rollout.topP", 1.01),
    "no-rollout": wrong("spec.rollout.replicas", 0),
    "no-tokens": wrong("spec.rollout.maxTokens", 0),
    "no-gpu": wrong("spec.rollout.tensorParallelSize", 0),
    "no-node": wrong("spec.trainer.nodes", 0),
    "no-process": wrong("spec.trainer.procsPerNode", 0),
    "no-learning": wrong("spec.trainer.learningRate", 0),
    "learning-rate-above-one": wrong("spec.trainer.learningRate", 1.5),
    "no-learning-in-a-window": wrong("spec.trainer.learningRateByWindow", [1e-6, 0]),
    "learning-rate-of-no-window": wrong("spec.trainer.learningRateByWindow", []),
    "unknown-schedule": wrong("spec.trainer.schedule", "step"),
    "warmup-negative": wrong("spec.trainer.warmupSteps", -1),
    "no-gradient": wrong("spec.trainer.maxGradNorm", 0),
    "optimizer-unknown": wrong("spec.trainer.optimizer", "sgd"),
    "weight-decay-negative": wrong("spec.trainer.weightDecay", -0.1),
    "too-few-tokens-per-micro-batch": wrong("spec.trainer.tokensPerMicroBatch", 15),
    "no-checkpoint-kept": wrong("spec.trainer.keepCheckpoints", 0),
    "checkpoint-every-zero-steps": wrong("spec.trainer.checkpointEverySteps", 0),
    "no-prompt-tokens": wrong("spec.data.maxPromptTokens", 0),
    "limit-zero": wrong("spec.data.prompts.limit", 0),
    "shuffle-seed-negative": wrong("spec.data.prompts.shuffleSeed", -1),
    "evaluation-never": wrong(
        "spec.data.evaluation", {"source": "arithmetic", "everyWindows": 0}, "spec.data.evaluation.everyWindows"
    ),
    "unknown-rule": wrong("spec.preference.rule.kind", "sentiment"),
    "no-time-for-a-rule": wrong("spec.preference.rule.timeoutSeconds", 0),
    "wandb-without-a-project": wrong("spec.telemetry", {"wandb": {}}, "spec.telemetry.wandb.project"),
    "events-in-a-relative-folder": wrong(
        "spec.telemetry", {"tensorboard": {"directory": "events"}}, "spec.telemetry.tensorboard.directory"
    ),
    "mlflow-with-a-password": wrong(
        "spec.telemetry", {"mlflow": {"trackingUri": "http://me:word@mlflow"}}, "spec.telemetry.mlflow.trackingUri"
    ),
    "mlflow-without-an-experiment": wrong("spec.telemetry", {"mlflow": {"experiment": ""}}, "spec.telemetry.mlflow.experiment"),
    "unknown-tracker": wrong("spec.telemetry", {"comet": {}}, "spec.telemetry.comet"),
    "judge-at-no-url": wrong("spec.preference", {"judge": JUDGE | {"url": "judge:8000"}}, "spec.preference.judge.url"),
    "judge-with-a-password": wrong("spec.preference", {"judge": JUDGE | {"url": "http://me:word@judge"}}, "preference.judge.url"),
    "judge-with-a-query": wrong("spec.preference", {"judge": JUDGE | {"url": "http://judge/v1?key=k"}}, "preference.judge.url"),
    "judge-without-requests": wrong("spec.preference", {"judge": JUDGE | {"concurrency": 0}}, "preference.judge.concurrency"),
    "judge-that-is-never-asked": wrong(
        "spec.preference", {"judge": JUDGE | {"requestsPerMinute": 0}}, "spec.preference.judge.requestsPerMinute"
    ),
    "judge-without-time": wrong("spec.preference", {"judge": JUDGE | {"timeoutSeconds": 0}}, "preference.judge.timeoutSeconds"),
    "judge-that-says-nothing": wrong("spec.preference", {"judge": JUDGE | {"maxTokens": 0}}, "spec.preference.judge.maxTokens"),
    "judge-of-one-comparison": wrong(
        "spec.preference", {"judge": JUDGE | {"maxComparisons": 1}}, "spec.preference.judge.maxComparisons"
    ),
    "secret-with-a-path": wrong(
        "spec.preference", {"judge": JUDGE | {"secretRef": {"name": "a", "key": "b/c"}}}, "spec.preference.judge.secretRef.key"
    ),
    "secret-without-key": wrong(
        "spec.preference", {"judge": JUDGE | {"secretRef": {"name": "a"}}}, "spec.preference.judge.secretRef.key"
    ),
    "reward-model-with-a-password": wrong(
        "spec.preference", {"rewardModel": SCORES | {"url": "http://me:word@scores"}}, "preference.rewardModel.url"
    ),
    "no-scorer": wrong("spec.scorer", {"replicas": 0}, "spec.scorer.replicas", spec__preference={"ranker": OWN}),
    "scorer-of-unknown-dtype": wrong(
        "spec.scorer", {"dtype": "int8"}, "spec.scorer.dtype", spec__preference={"rewardModel": OWN}
    ),
    "scorer-on-no-gpu": wrong(
        "spec.scorer", {"tensorParallelSize": 0}, "spec.scorer.tensorParallelSize", spec__preference={"ranker": OWN}
    ),
    "scorer-argument-with-dashes": wrong(
        "spec.scorer", {"engineArgs": {"--runner": "draft"}}, "spec.scorer.engineArgs", spec__preference={"ranker": OWN}
    ),
    "backoff-limit-negative": wrong("spec.lifecycle.backoffLimit", -1),
    "deadline-zero": wrong("spec.lifecycle.activeDeadlineSeconds", 0),
    "ttl-negative": wrong("spec.lifecycle.ttlSecondsAfterFinished", -1),
    "unknown-access-mode": wrong("spec.storage.accessModes", ["ReadWriteAll"], "spec.storage.accessModes"),
    "no-access-mode": wrong("spec.storage.accessModes", []),
    "size-that-is-none": wrong("spec.storage.size", "lots"),
    "claim-name-with-a-space": wrong("spec.storage.claimName", "my claim", spec__storage__size=MISSING),
    "rule-for-success": wrong(
        "spec.lifecycle.failurePolicy", [{"exitCodes": [0], "action": "Fail"}], "spec.lifecycle.failurePolicy"
    ),
    "rule-without-codes": wrong("spec.lifecycle.failurePolicy", [{"exitCodes": [], "action": "Fail"}]),
    "rule-with-unknown-action": wrong("spec.lifecycle.failurePolicy", [{"exitCodes": [7], "action": "Ignore"}]),
    **{
        f"{name}-in-a-name": wrong("spec.model.source", f"org/{character}x")
        for name, character in {
            "escape": "\x1b[31m",
            "line-end": "\n",
            "tab": "\t",
            "delete": "\x7f",
            "c1": "\x9b31m",
            "line-separator": "\u2028",
            "right-to-left": "\u202e",
            "isolate": "\u2066",
        }.items()
    },
    **{
        f"control-character-in-{path.rpartition('.')[2]}": wrong(path, value, **others)
        for path, value, others in (
            ("spec.model.chatTemplate", "{{ messages }}\x1b]0;x\x07", {}),
            ("spec.data.prompts.template", "{question}\x00", {}),
            ("spec.rollout.image", "image\x1b[2J", {}),
            ("spec.lifecycle.managedBy", "other\x08", {}),
            ("spec.telemetry.tensorboard.directory", "/board\x1b", {}),
            ("spec.telemetry.mlflow.trackingUri", "http://mlflow\x1b", {}),
            ("spec.preference.rule.entryPoint", "rewards:\x1bscore", {"spec__preference__rule__kind": "python"}),
        )
    },
    "control-character-in-a-url": wrong(
        "spec.preference", {"judge": JUDGE | {"url": "http://judge\x1b/v1"}}, "spec.preference.judge.url"
    ),
    "engine-argument-with-dashes": wrong("spec.rollout.engineArgs", {"--max-num-seqs": 256}),
    **{
        f"engine-argument-{name}": wrong("spec.rollout.engineArgs", {name: "0.0.0.0"})
        for name in ("host", "tokenizer", "trust-remote-code", "no-trust-remote-code", "tokeniz", "no-enable-lo", "ssl-keyfile")
    },
    **{
        f"engine-argument-{name}": wrong("spec.rollout.engineArgs", {"max-num-seqs": value})
        for name, value in {
            "that-is-an-option": "--host=0.0.0.0",
            "that-is-a-short-option": "-tp=4",
            "with-a-control-character": "8\x1b[31m",
            "that-is-empty": "",
            "that-is-too-long": "8" * 5000,
        }.items()
    },
    **{
        f"scorer-argument-{name}": wrong(
            "spec.scorer", {"engineArgs": {name: "x"}}, "spec.scorer.engineArgs", spec__preference={"ranker": OWN}
        )
        for name in ("port", "chat-template", "runner")
    },
    "engine-argument-that-is-a-list": wrong("spec.rollout.engineArgs", {"lora-modules": ["a"]}),
    "engine-argument-that-is-a-fraction": wrong("spec.rollout.engineArgs", {"gpu-memory-utilization": 0.5}),
    "engine-argument-that-is-truth": wrong("spec.rollout.engineArgs", {"enforce-eager": True}),
    "entry-point-without-function": wrong("spec.preference.rule.entryPoint", "rewards", spec__preference__rule__kind="python"),
    # Rules over several fields.
    **{
        f"block-{block}-of-the-loss-{loss}": wrong(
            "spec.method", LOSS_WITH_ITS_METHOD[loss] | {block: {}}, f"the block {block} is for the loss {block}"
        )
        for block in LOSS_BLOCKS
        for loss in LOSSES
        if loss != block
    },
    "block-without-a-loss": wrong("spec.method.ipo", {}, "the block ipo is for the loss ipo"),
    **{
        f"{moved.old}-where-it-was": wrong(f"spec.method.{moved.old}", value, moved.place)
        for moved, value in zip(MOVED, (0.0, True, 1000.0, True, "prompt", 1.0), strict=True)
    },
    "spin-by-a-rule": wrong("spec.method.name", "spin", "method.name"),
    "ground-truth-for-online-dpo": wrong("spec.preference", {"groundTruth": {}}, "preference.groundTruth"),
    "spin-with-pairing": wrong("spec.method", {"name": "spin", "pairing": "allPairs"}, spec__preference={"groundTruth": {}}),
    "spin-with-margin": wrong("spec.method", {"name": "spin", "minMargin": 0.5}, spec__preference={"groundTruth": {}}),
    "spin-by-margins": wrong("spec.method", {"name": "spin", "weightByMargin": True}, spec__preference={"groundTruth": {}}),
    "penalty-without-penalising": wrong("spec.method.truncatedPenalty", 0.5, "truncatedPenalty is for"),
    "penalty-of-dropped-answers": wrong("spec.method", {"truncated": "drop", "truncatedPenalty": 0.5}, "truncatedPenalty is for"),
    "penalty-zero": wrong("spec.method", {"truncated": "penalise", "truncatedPenalty": 0}, "spec.method.truncatedPenalty"),
    "unknown-fate-of-truncated-answers": wrong("spec.method.truncated", "zero"),
    "spin-with-penalties": wrong(
        "spec.method", {"name": "spin", "truncated": "penalise"}, "nothing to take", spec__preference={"groundTruth": {}}
    ),
    "spin-without-answers": wrong(
        "spec.data.prompts.source",
        "openai/gsm8k",
        "data.prompts.answerColumn",
        spec__method__name="spin",
        spec__preference={"groundTruth": {"rule": {"kind": "python", "entryPoint": "a:b"}}},
    ),
    "loss-and-losses": wrong("spec.method", {"loss": "hinge", "losses": [{"name": "ipo"}]}, "loss is for one loss"),
    "losses-without-any": wrong("spec.method.losses", []),
    "one-loss-twice": wrong("spec.method.losses", [{"name": "ipo"}, {"name": "ipo"}], "names a loss twice"),
    "unknown-loss-among-several": wrong("spec.method.losses", [{"name": "kto"}], "spec.method.losses"),
    "loss-of-weight-zero": wrong("spec.method.losses", [{"name": "ipo", "weight": 0}], "spec.method.losses"),
    "loss-of-beta-zero": wrong("spec.method.losses", [{"name": "ipo", "beta": 0}], "spec.method.losses"),
    "sppo-among-losses": wrong("spec.method.losses", [{"name": "ipo"}, {"name": "sppo"}], "cannot be among losses"),
    "grpo-among-losses": wrong("spec.method.losses", [{"name": "grpo"}], "sppo, sppoAdvantage and grpo cannot be among losses"),
    "advantages-among-losses": wrong("spec.method.losses", [{"name": "sppoAdvantage"}], "cannot be among losses"),
    "losses-of-the-method-sppo": wrong("spec.method", {"name": "sppo", "losses": [{"name": "ipo"}]}),
    "block-of-none-of-the-losses": wrong(
        "spec.method", {"losses": [{"name": "ipo"}, {"name": "hinge"}], "robust": {}}, "the block robust is for the loss robust"
    ),
    "block-of-the-loss-that-losses-replace": wrong(
        "spec.method", {"losses": [{"name": "ipo"}], "sigmoid": {}}, "the block sigmoid is for the loss sigmoid"
    ),
    "sppo-with-another-loss": wrong("spec.method", {"name": "sppo"}),
    "sppo-loss-with-another-method": wrong("spec.method", {"loss": "sppo"}),
    "margin-that-no-win-rates-have": wrong("spec.method", SPPO | {"minMargin": 1.5}),
    "advantages-with-another-method": wrong("spec.method", {"loss": "sppoAdvantage"}),
    "advantages-of-spin": wrong("spec.method", {"name": "spin", "loss": "sppoAdvantage"}, spec__preference={"groundTruth": {}}),
    "pairing-of-advantages": wrong("spec.method", ADVANTAGE | {"pairing": "allPairs"}),
    "base-answers-of-sppo": wrong("spec.method", SPPO | {"pairing": "bestVsBase"}),
    "base-answer-without-a-comparison": wrong(
        "spec.preference", {"ranker": SCORES | {"maxComparisons": 8}}, "maxComparisons", spec__method={"pairing": "bestVsBase"}
    ),
    "grpo-with-another-loss": wrong("spec.method", {"name": "grpo"}, "set name and loss to grpo"),
    "grpo-loss-with-another-method": wrong("spec.method", {"loss": "grpo"}, "set name and loss to grpo"),
    **{
        f"{name}-of-grpo": wrong("spec.method", GRPO | {name: value}, "grpo trains on every answer by its reward, not on pairs")
        for name, value in {
            "pairing": "allPairs",
            "minMargin": 0.1,
            "sftWeight": 0.1,
            "lengthDesensitize": 0.5,
            "weightByMargin": True,
            "weightByLikelihood": True,
            "beta": 0.04,
            "betaByWindow": [0.1],
            "referenceLogprobs": "rollouts",
        }.items()
    },
    "base-answers-of-grpo": wrong("spec.method", GRPO | {"pairing": "bestVsBase"}),
    "true-answers-of-grpo": wrong("spec.preference", {"groundTruth": {}}, "preference.groundTruth", spec__method=GRPO),
    **{
        f"{name}-without-importance": wrong(
            "spec.method", GRPO | {name: 1, "grpo": {"importanceCap": 0}}, "answers are older than the version that grpo trains"
        )
        for name in ("overlap", "replayWindows")
    },
    "one-answer-of-grpo": wrong("spec.rollout.samplesPerPrompt", 1, "rollout.samplesPerPrompt", spec__method=GRPO),
    "clip-of-more-than-everything": wrong("spec.method", GRPO | {"grpo": {"clipLow": 1.5}}, "spec.method.grpo.clipLow"),
    "importance-below-zero": wrong("spec.method", GRPO | {"grpo": {"importanceCap": -1}}, "spec.method.grpo.importanceCap"),
    "mean-of-nothing": wrong("spec.method", GRPO | {"grpo": {"mean": "pairs"}}, "spec.method.grpo.mean"),
    "scale-of-nothing": wrong("spec.method", GRPO | {"grpo": {"scaleRewards": "batch"}}, "spec.method.grpo.scaleRewards"),
    "log-probs-of-nothing": wrong("spec.rollout.logprobs", "all", "spec.rollout.logprobs"),
    "margin-of-advantages": wrong("spec.method", ADVANTAGE | {"minMargin": 0.1}),
    "sft-weight-of-advantages": wrong("spec.method", ADVANTAGE | {"sftWeight": 0.1}),
    "margins-that-weigh-advantages": wrong("spec.method", ADVANTAGE | {"weightByMargin": True}),
    "likelihoods-that-weigh-advantages": wrong("spec.method", ADVANTAGE | {"weightByLikelihood": True}),
    "lengths-of-advantages": wrong("spec.method", ADVANTAGE | {"lengthDesensitize": 0.5}),
    "one-sample-among-those-of-its-prompt": wrong(
        "spec.rollout.samplesPerPrompt",
        1,
        "rollout.samplesPerPrompt",
        spec__method=ADVANTAGE,
    ),
    "spin-without-any-answers": wrong(
        "spec.data.prompts.source",
        "openai/gsm8k",
        "data.prompts.answerColumn",
        spec__method__name="spin",
        spec__preference={"groundTruth": {}},
    ),
    "source-and-url": wrong("spec.preference", {"rewardModel": OWN | SCORES}, "spec.preference.rewardModel"),
    "name-of-an-own-model": wrong("spec.preference", {"ranker": OWN | {"model": "stern"}}, "spec.preference.ranker"),
    "key-of-an-own-model": wrong(
        "spec.preference", {"ranker": OWN | {"secretRef": {"name": "a", "key": "b"}}}, "spec.preference.ranker"
    ),
    "revision-of-a-url": wrong("spec.preference", {"ranker": SCORES | {"revision": "main"}}, "spec.preference.ranker"),
    "scorer-of-a-rule": wrong("spec.scorer", {"replicas": 2}, "the block scorer"),
    "scorer-of-a-url": wrong("spec.scorer", {}, "the block scorer", spec__preference={"rewardModel": SCORES}),
    "scorer-of-a-judge": wrong("spec.scorer", {}, "the block scorer", spec__preference={"judge": JUDGE}),
    "judge-who-sees-one-answer": wrong(
        "spec.preference", {"judge": JUDGE | {"template": "{prompt} {first}"}}, "spec.preference.judge"
    ),
    "reward-model-that-sees-no-answer": wrong(
        "spec.preference", {"rewardModel": SCORES | {"template": "{prompt}"}}, "spec.preference.rewardModel"
    ),
    "ranker-that-sees-one-answer": wrong(
        "spec.preference", {"ranker": SCORES | {"secondTemplate": "{prompt}"}}, "spec.preference.ranker"
    ),
    "ranker-of-more-samples-than-comparisons": wrong(
        "spec.preference", {"ranker": SCORES | {"maxComparisons": 7}}, "maxComparisons"
    ),
    "ranked-evaluation-without-answers": wrong(
        "spec.data.evaluation.source", "openai/gsm8k", "data.evaluation.answerColumn", spec__preference={"ranker": SCORES}
    ),
    "judge-of-spin": wrong("spec.preference", {"judge": JUDGE}, "method.name", spec__method__name="spin"),
    "judge-of-one-sample": wrong(
        "spec.preference",
        {"judge": JUDGE},
        "maxComparisons",
        spec__rollout__samplesPerPrompt=1,
        spec__method=ADVANTAGE | {"sppoAdvantage": {"advantage": "batch"}},
    ),
    "judge-of-more-samples-than-comparisons": wrong(
        "spec.preference", {"judge": JUDGE | {"maxComparisons": 7}}, "maxComparisons"
    ),
    "judged-evaluation-without-answers": wrong(
        "spec.data.evaluation.source", "openai/gsm8k", "data.evaluation.answerColumn", spec__preference={"judge": JUDGE}
    ),
    "eta-zero": wrong("spec.method", SPPO | {"sppo": {"eta": 0}}, "spec.method.sppo.eta"),
    "eta-zero-of-advantages": wrong("spec.method", ADVANTAGE | {"sppoAdvantage": {"eta": 0}}, "spec.method.sppoAdvantage.eta"),
    "one-sample": wrong("spec.rollout.samplesPerPrompt", 1, "rollout.samplesPerPrompt"),
    "reference-between-publications": wrong("spec.method", {"refUpdateFreq": 6, "rolloutUpdateFreq": 4}),
    "window-longer-than-a-reference": wrong("spec.method", {"rolloutUpdateFreq": 32}),
    "window-of-unknown-length": wrong("spec.method", {"refUpdateFreq": 0}),
    "log-probs-of-answers-that-no-rollout-gave": wrong(
        "spec.method",
        {"referenceLogprobs": "rollouts", "name": "spin"},
        "referenceLogprobs",
        spec__preference={"groundTruth": {}},
    ),
    "log-probs-of-the-base-by-rollouts": wrong(
        "spec.method", {"referenceLogprobs": "rollouts", "pairing": "bestVsBase"}, "referenceLogprobs"
    ),
    "log-probs-of-earlier-answers-by-rollouts": wrong(
        "spec.method", {"referenceLogprobs": "rollouts", "replayWindows": 1}, "referenceLogprobs"
    ),
    "log-probs-of-weighted-tokens-by-rollouts": wrong(
        "spec.method", {"referenceLogprobs": "rollouts", "lengthDesensitize": 0.5}, "referenceLogprobs"
    ),
    "log-probs-of-an-older-version-by-rollouts": wrong(
        "spec.method", {"referenceLogprobs": "rollouts", "refUpdateFreq": 4, "rolloutUpdateFreq": 2}, "referenceLogprobs"
    ),
    "mixture-of-nothing": wrong("spec.method.referenceMixture", 0),
    "mixture-of-the-policy-alone": wrong("spec.method.referenceMixture", 1),
    "mixture-that-never-changes": wrong(
        "spec.method", {"refUpdateFreq": 0, "rolloutUpdateFreq": 2, "referenceMixture": 0.5}, "nothing is mixed"
    ),
    "mixture-that-grpo-does-not-read": wrong("spec.method", GRPO | {"referenceMixture": 0.5}, "could be a mixture"),
    "mixture-that-no-loss-reads": wrong("spec.method", {"loss": "simpo", "referenceMixture": 0.5}, "could be a mixture"),
    "mixture-that-none-of-the-losses-reads": wrong(
        "spec.method", {"losses": [{"name": "simpo"}, {"name": "cringe"}], "referenceMixture": 0.5}, "could be a mixture"
    ),
    "mixture-that-no-rollout-serves": wrong(
        "spec.method", {"referenceLogprobs": "rollouts", "referenceMixture": 0.5}, "referenceLogprobs"
    ),
    "mixture-of-adapters": wrong("spec.trainer.lora", {}, "two factors of adapters", spec__method={"referenceMixture": 0.5}),
    "no-mismatch": wrong("spec.method.maxMismatch", 0),
    "two-betas": wrong("spec.method", {"beta": 0.2, "betaByWindow": [0.1]}),
    "two-learning-rates": wrong("spec.trainer", {"learningRate": 1e-6, "learningRateByWindow": [5e-7]}),
    "adapters-of-a-rank-that-vllm-cannot-serve": wrong("spec.trainer.lora", {"rank": 513}, "spec.trainer.lora.rank"),
    "adapters-of-no-rank": wrong("spec.trainer.lora", {"rank": 0}, "spec.trainer.lora.rank"),
    "adapters-without-scale": wrong("spec.trainer.lora", {"alpha": 0}, "spec.trainer.lora.alpha"),
    "adapters-of-no-layer": wrong("spec.trainer.lora", {"targets": []}, "spec.trainer.lora.targets"),
    "adapters-of-a-pattern": wrong("spec.trainer.lora", {"targets": [".*_proj"]}, "spec.trainer.lora.targets"),
    "replay-in-a-part-of-a-window": wrong(
        "spec.duration", {"steps": 8}, "method.replayWindows", spec__method={"replayWindows": 1}
    ),
    "pass-rates-with-nothing-between": wrong(
        "spec.method.sampling.passRate", {"min": 0.6, "max": 0.4}, "passRate.min", **WINDOWS
    ),
    **{
        f"pass-rates-of-a-{name}": wrong(
            "spec.preference", {name: block}, "method.sampling.passRate", spec__method={"sampling": {"passRate": {}}}, **WINDOWS
        )
        for name, block in {"judge": JUDGE, "ranker": SCORES, "rewardModel": OWN}.items()
    },
    "epochs-of-pass-rates": wrong("spec.method.sampling.passRate", {"max": 0.9}, "duration.windows"),
    "base-answers-of-pass-rates": wrong(
        "spec.method", {"pairing": "bestVsBase", "sampling": {"passRate": {}}}, "method.sampling.passRate", **WINDOWS
    ),
    "no-source-of-prompts": wrong("spec.data.prompts", {}, "exactly one of source and sources"),
    "source-and-sources": wrong(
        "spec.data.prompts", {"source": "arithmetic", "sources": [ROWS]}, "exactly one of source and sources"
    ),
    **{
        f"{name}-beside-sources": wrong("spec.data.prompts", {"sources": [ROWS], name: value}, "each of them says")
        for name, value in {"config": "main", "split": "test", "promptColumn": "q", "answerColumn": "a", "limit": 3}.items()
    },
    "a-source-named-twice": wrong(
        "spec.data.prompts", {"sources": [ROWS, OTHER_ROWS, ROWS | {"weight": 2.0}]}, "the same source is named twice"
    ),
    "a-source-without-answers": wrong(
        "spec.data.prompts", {"sources": [ROWS, {"source": "openai/gsm8k"}]}, "data.prompts.answerColumn"
    ),
    "two-durations": wrong("spec.duration", {"windows": 2, "steps": 8}),
    "no-duration": wrong("spec.duration", {}),
    "claim-and-size": wrong("spec.storage", {"claimName": "shared", "size": "1Gi"}),
    "neither-claim-nor-size": wrong("spec.storage", {}),
    "class-of-an-existing-claim": wrong("spec.storage", {"claimName": "shared", "storageClassName": "nfs"}),
    "regex-without-pattern": wrong("spec.preference.rule", {"kind": "regex"}),
    "pattern-without-regex": wrong("spec.preference.rule", {"kind": "exact", "pattern": "a"}),
    "python-without-entry-point": wrong("spec.preference.rule", {"kind": "python"}),
    "entry-point-without-python": wrong("spec.preference.rule", {"kind": "math", "entryPoint": "a:b"}),
    "rule-without-answers": wrong("spec.data.prompts.source", "openai/gsm8k", "data.prompts.answerColumn"),
    "evaluation-without-answers": wrong("spec.data.evaluation.source", "openai/gsm8k", "data.evaluation.answerColumn"),
    "regex-over-answers-without-answers": wrong(
        "spec.data.prompts.source",
        "openai/gsm8k",
        "data.prompts.answerColumn",
        spec__preference__rule__kind="regex",
        spec__preference__rule__pattern="= {answer}$",
    ),
}
