"""`engineArgs`: which arguments of vLLM a run may not set, and what to do instead.

vLLM takes several spellings of an option: its beginning, as long as no other option begins like that, and `no-` before it. All of
them are refused. The lists are those of vLLM 0.32; `tests/engine/test_engine_args.py` finds what a newer one adds to them.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from spinrun_api.base import Rule
from spinrun_api.yaml_text import MAX_INTEGER, MIN_INTEGER

MAX_NAME_LENGTH = 64
MAX_VALUE_LENGTH = 4096

_SET_BY_SPINRUN = "is set by SpinRun: remove it"
_CODE = "makes vLLM load code from elsewhere: remove it, or bring an image of your own that does so"
_FILES = "reads or writes files of its own: remove it"
_NETWORK = "opens vLLM, which asks nobody for a token, to the network: remove it"
_ELSEWHERE = "sends what vLLM does to another server: remove it"
_LOGS = "writes prompts and answers into the log: remove it; `spinrun samples` shows them"
_WEIGHTS = "weights come from safetensors, in the folder of their version: remove it"
_REPLICAS = "a pod is one server: set replicas instead"
_STALE = "keeps what was computed with the weights of an older version: remove it"
_SHARED = {
    _SET_BY_SPINRUN: (
        "config", "host", "port", "served-model-name", "disable-log-stats", "distributed-executor-backend", "device-ids",
        "enable-sleep-mode", "sleep-mode-offload-cudagraph", "sleep-preserve-parameter-names", "skip-tokenizer-init",
        "generation-config", "override-generation-config", "weight-transfer-config", "hf-config-path",
        "enable-fault-tolerance", "fault-tolerance-config", "help",
    ),
    _NETWORK: (
        "uds", "grpc", "grpc-port", "api-key", "root-path", "allow-credentials", "allowed-origins", "allowed-methods",
        "allowed-headers", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "ssl-ciphers", "enable-ssl-refresh",
        "tokens-only", "enable-scale-out", "trust-request-chat-template", "trust-request-mm-kwargs", "enable-prompt-embeds",
        "enable-mm-embeds", "allowed-local-media-path", "allowed-media-domains",
    ),
    _CODE: (
        "middleware", "worker-cls", "worker-extension-cls", "scheduler-cls", "logits-processors", "io-processor-plugin",
        "tool-parser-plugin", "reasoning-parser-plugin", "model-class-overrides", "logging-config", "log-config-file",
        "compilation-config", "speculative-config", "spec-method", "spec-model", "spec-tokens", "additional-config",
        "ec-manager-config", "code-revision", "structured-outputs-config",
    ),
    _WEIGHTS: ("load-format", "model-loader-extra-config", "ignore-patterns", "pt-load-map-location"),
    _FILES: ("download-dir", "profiler-config", "mm-encoder-fp8-scale-path", "mm-encoder-fp8-scale-save-path"),
    _ELSEWHERE: ("otlp-traces-endpoint", "kv-events-config", "tool-server"),
    _STALE: ("kv-transfer-config", "ec-transfer-config", "kv-offloading-size", "kv-offloading-backend"),
    _LOGS: ("enable-log-requests", "enable-log-outputs", "enable-log-deltas"),
    _REPLICAS: (
        "headless", "api-server-count", "nnodes", "node-rank", "master-addr", "master-port", "data-parallel-size",
        "data-parallel-rank", "data-parallel-start-rank", "data-parallel-size-local", "data-parallel-address",
        "data-parallel-rpc-port", "data-parallel-backend", "data-parallel-hybrid-lb", "data-parallel-external-lb",
        "data-parallel-multi-port-external-lb", "data-parallel-supervisor-port", "dp-supervisor-probe-interval-s",
        "dp-supervisor-probe-timeout-s", "dp-supervisor-probe-failure-threshold", "enable-elastic-ep", "elastic-ep-max-dp-size",
    ),
    "set tensorParallelSize instead": ("tensor-parallel-size",),
    "pass HF_TOKEN from a Secret, in the template's env, instead": ("hf-token",),
}  # fmt: skip
_OF_ROLLOUTS = {
    "set spec.model.source instead": ("model",),
    "set spec.model.revision instead": ("revision", "tokenizer-revision"),
    "set spec.model.dtype instead": ("dtype",),
    "set spec.model.tokenizer instead": ("tokenizer",),
    "set spec.model.trustRemoteCode instead": ("trust-remote-code",),
    "set spec.model.chatTemplate instead": ("chat-template",),
    "set spec.trainer.lora instead": (
        "enable-lora", "max-lora-rank", "max-loras", "lora-modules", "lora-target-modules", "default-mm-loras",
    ),
    "rollouts sample from exactly the model that is trained: remove it": (
        "hf-overrides", "quantization", "quantization-config", "allow-deprecated-quantization", "logprobs-mode",
        "watermark-config", "runner", "convert", "pooler-config", "enable-trace-replay",
    ),
}  # fmt: skip
_OF_SCORERS = {
    "set source in spec.preference instead": ("model", "tokenizer"),
    "set revision in spec.preference instead": ("revision", "tokenizer-revision"),
    "set spec.scorer.dtype instead": ("dtype",),
    "set template in spec.preference instead": ("chat-template",),
    _SET_BY_SPINRUN: ("runner", "pooler-config"),
    "scorers run no code of their model's source: remove it": ("trust-remote-code",),
    "a scorer serves one whole model: set source in spec.preference instead": (
        "enable-lora", "max-lora-rank", "max-loras", "lora-modules", "lora-target-modules", "default-mm-loras",
    ),
}  # fmt: skip

FREE_BEGINNINGS = ("reasoning-parser", "watermark")
"""Options of their own that are also the beginning of a refused one."""


def _by_name(*groups: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: remedy for group in groups for remedy, names in group.items() for name in names}


REFUSED_IN_ROLLOUTS = _by_name(_SHARED, _OF_ROLLOUTS)
"""Arguments that are refused, with what to do instead."""
REFUSED_IN_SCORERS = _by_name(_SHARED, _OF_SCORERS)
"""The same for the servers of the preference's model."""


def refusal(name: str, refused: Mapping[str, str]) -> str | None:
    """Why an argument may not be set, and what to do; None for one that may.

    Args:
        name: Its name as the user wrote it.
        refused: What is refused.
    """
    option = name.removeprefix("no-")
    if option in refused:
        return refused[option]
    if name in FREE_BEGINNINGS:
        return None
    meant = next((each for each in refused if each.startswith(option)), None)
    return None if meant is None else f"vLLM may take it for {meant}: write the whole name of another argument, or remove it"


def _number_or_text(value: object) -> object:
    """Kubernetes has no type for "number, text or truth value": what is neither whole number nor text travels as text."""
    if isinstance(value, bool | float):
        raise ValueError(f'must be a whole number or text: write "{json.dumps(value)}", with the quotes')
    if not isinstance(value, int | str):
        raise ValueError("must be a whole number or text: write JSON that vLLM is to read as text, in quotes")
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        raise ValueError(f"whole numbers go from {MIN_INTEGER} to {MAX_INTEGER}: write another")
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        raise ValueError(f"is a number: write {value}, without quotes")
    if isinstance(value, str) and (len(value) > MAX_VALUE_LENGTH or _ONE_VALUE.fullmatch(value) is None):
        raise ValueError(
            f"a text has 1 to {MAX_VALUE_LENGTH} characters, none of them a control character, and does not begin with a dash, "
            "as an option does: correct it"
        )
    return value


_DIGITS = re.compile("-[0-9]{1,18}")
_ONE_VALUE = re.compile("[^-\\x00-\\x1f\\x7f-\\x9f][^\\x00-\\x1f\\x7f-\\x9f]*")
"""What vLLM reads as the value of its option, and not as an option of its own."""
VALUE_PATTERN = r"^[^-\p{Cc}]\P{Cc}*$"
"""The same for the API server, which holds texts alone to it."""
_VALUE_SCHEMA: dict[str, Any] = {"minLength": 1, "maxLength": MAX_VALUE_LENGTH, "pattern": VALUE_PATTERN}


def _checked_name(refused: Mapping[str, str]) -> AfterValidator:
    def check(name: str) -> str:
        if (reason := refusal(name, refused)) is not None:
            raise ValueError(reason)
        return name

    return AfterValidator(check)


def _rules(refused: Mapping[str, str]) -> Any:
    """What the API server checks: it tells that an argument is refused, and the command line what to do instead."""
    free = ", ".join(f"'{name}'" for name in FREE_BEGINNINGS)
    option = "(name.startsWith('no-') ? name.substring(3) : name)"
    rule = Rule(
        f"self.all(name, name in [{free}] || !'|{'|'.join(sorted(refused))}'.contains('|' + {option}))",
        "some arguments are set by SpinRun, or by other fields, and may not be set here, neither with no- in front nor by their"
        " beginning: `spinrun validate` says which field is meant, docs/operations.md lists them",
    )
    return Field(json_schema_extra={"x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message}]})


_Name = StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=MAX_NAME_LENGTH)
_Value = Annotated[int | str, BeforeValidator(_number_or_text), Field(json_schema_extra=_VALUE_SCHEMA)]

RolloutArgs = Annotated[dict[Annotated[str, _Name, _checked_name(REFUSED_IN_ROLLOUTS)], _Value], _rules(REFUSED_IN_ROLLOUTS)]
ScorerArgs = Annotated[dict[Annotated[str, _Name, _checked_name(REFUSED_IN_SCORERS)], _Value], _rules(REFUSED_IN_SCORERS)]
