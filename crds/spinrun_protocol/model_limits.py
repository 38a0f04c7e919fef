"""What a model's config.json says against a run before anything starts: positions, dtype, parallel sizes, adapters.

vLLM finds the same out late, as a traceback after its imports, start after start. These are its own rules (0.32,
vllm/config/model.py, transformers_utils/model_arch_config_convertor.py), read from config.json alone: nothing here imports it.
What the file does not say is not judged.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from spinrun_api.documents import Problem
from spinrun_api.run import SpinRun
from spinrun_api.spec import Scorer, SpinRunSpec
from spinrun_api.spec.rollout import DEFAULT_TOKENS

Config = Mapping[str, Any]
EngineArgs = Mapping[str, str | int]

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Of families whose files often leave it out.
_POSITIONS_UNSAID = {"falcon": 2048, "gpt2": 1024}
_LANGUAGE_PARTS = ("text_config", "language_config", "llm_config", "language_model", "thinker_config")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KEY_VALUE_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_VOCABULARY_BLOCK = 64
"""vLLM pads the vocabulary to a multiple of this before it divides it among GPUs."""

# Rotary positions that are scaled within the number of positions that the file gives.
_ROPE_WITHIN_POSITIONS = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
# Those that depend on the longest sequence, beyond the length that the model was first trained for.
_ROPE_BY_LENGTH = ("su", "longrope", "dynamic")

_DTYPES = {"half": "float16", "float16": "float16", "float": "float32", "float32": "float32", "bfloat16": "bfloat16"}
_NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")

# Dense language models that neither vLLM 0.32 nor its use of transformers' own code serves.
_NOT_SERVED = (
    "AquilaForCausalLM",
    "BaiChuanForCausalLM",
    "BaichuanForCausalLM",
    "BioGptForCausalLM",
    "CodeGenForCausalLM",
    "CpmAntForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXJapaneseForCausalLM",
    "MPTForCausalLM",
    "MptForCausalLM",
    "OpenAIGPTLMHeadModel",
    "RWForCausalLM",
    "RwkvForCausalLM",
    "StableLMEpochForCausalLM",
    "XGLMForCausalLM",
    "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
    "XverseForCausalLM",
)

ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""vLLM's switch for reading beyond a model's positions, at the user's own risk."""


@dataclass(frozen=True)
class Limit:
    """How many tokens, prompt and answer together, a model reads."""

    tokens: int
    why: str
    """Where that is said."""
    is_vllms: bool = True
    """Whether vLLM itself refuses to read more."""


def limit_of(config: Config | None, engine_args: EngineArgs | None = None) -> Limit | None:
    """How many tokens a model reads; None where that is not said.

    Args:
        config: Content of its config.json; None where that cannot be read.
        engine_args: The user's arguments of vLLM.
    """
    arguments = engine_args or {}
    limits = [] if config is None or "hf-overrides" in arguments else list(_limits_in_files(config, arguments))
    asked = _whole(arguments.get("max-model-len"))
    if asked is not None and asked > 0:
        limits.append(Limit(asked, "spec.rollout.engineArgs.max-model-len"))
    return min(limits, key=lambda limit: limit.tokens, default=None)


def _limits_in_files(config: Config, arguments: EngineArgs) -> Iterator[Limit]:
    text = language_part(config)
    name, tokens = _positions(text)
    if tokens is None:
        return
    rope = [part for part in _rope_parts(text) if part]
    kinds = {str(part.get("rope_type", part.get("type", "default"))) for part in rope}
    factors = [part.get("factor") for part in rope if part.get("rope_type", part.get("type")) not in _ROPE_WITHIN_POSITIONS]
    factor = next((each for each in factors if isinstance(each, int | float) and each > 0), 1)
    if kinds & set(_ROPE_BY_LENGTH):
        candidates = [text, *rope]
        originals = [_whole(each.get("original_max_position_embeddings")) for each in candidates]
        original = min((each for each in originals if each), default=tokens)
        yield Limit(original, "beyond which its rotary positions depend on the length, by its config.json", is_vllms=False)
    elif "gemma3" in str(text.get("model_type", "")) or factor == 1:
        yield Limit(tokens, f"{name} in its config.json")
    else:
        yield Limit(
            int(tokens * factor), f"{name} {tokens} in its config.json, times the factor {factor} of its rotary positions"
        )
    window = _whole(text.get("sliding_window"))
    if window and str(arguments.get("disable-sliding-window")) == "true":
        yield Limit(window, "sliding_window, by spec.rollout.engineArgs.disable-sliding-window")


def _positions(text: Config) -> tuple[str, int | None]:
    """The field that says how many positions there are, and their number."""
    longest = _whole(text.get("model_max_length"))
    if longest:
        return "model_max_length", longest
    found = [(count, name) for name in _POSITIONS if (count := _whole(text.get(name)))]
    if found:
        count, name = min(found)
        return name, count
    kind = str(text.get("model_type"))
    return f"the default of {kind}", _POSITIONS_UNSAID.get(kind)


def _rope_parts(text: Config) -> Iterator[Config]:
    for name in ("rope_parameters", "rope_scaling"):
        rope = text.get(name)
        if isinstance(rope, Mapping):
            rope = cast(Config, rope)
            yield rope
            yield from (cast(Config, part) for part in rope.values() if isinstance(part, Mapping))


def language_part(config: Config) -> Config:
    """The part of a configuration that is about text."""
    while parts := [part for name in _LANGUAGE_PARTS if isinstance(part := config.get(name), Mapping)]:
        config = cast(Config, parts[0])
    return config


def fitted(run: SpinRun, config: Config | None) -> SpinRun:
    """The run with the lengths that its spec leaves open: 1024 tokens each, or what the model reads.

    Args:
        run: The run.
        config: Content of the model's config.json; None where that cannot be read.
    """
    spec = run.spec
    limit = limit_of(config, spec.rollout.engine_args)
    answer, prompt = spec.rollout.max_tokens, spec.data.max_prompt_tokens
    tokens = limit.tokens if limit else 2 * DEFAULT_TOKENS + (answer or 0) + (prompt or 0)
    if answer is None:
        answer = min(DEFAULT_TOKENS, tokens // 2 if prompt is None else tokens - prompt)
    answer = max(1, answer)
    if prompt is None:
        prompt = max(1, min(DEFAULT_TOKENS, tokens - answer))
    parts = {
        "data": spec.data.model_copy(update={"max_prompt_tokens": prompt}),
        "rollout": spec.rollout.model_copy(update={"max_tokens": answer}),
    }
    return run.model_copy(update={"spec": spec.model_copy(update=parts)})


def lengths_that_shrank(run: SpinRun, fitting: SpinRun) -> str:
    """A sentence on lengths that are less than their defaults because the model reads no more; empty where none is.

    Args:
        run: The run as the user wrote it.
        fitting: The same, fitted.
    """
    prompt, answer = fitting.spec.max_prompt_tokens, fitting.spec.max_tokens
    if (prompt, answer) == (run.spec.max_prompt_tokens, run.spec.max_tokens):
        return ""
    return f"the model reads {prompt + answer} tokens: data.maxPromptTokens is {prompt} and rollout.maxTokens {answer}"


def problems_with_model(run: SpinRun, config: Config, environment: Mapping[str, str] | None = None) -> list[Problem]:
    """What the files of the run's model contradict, each with the field to change.

    Args:
        run: The run, as the user wrote it or fitted.
        config: Content of the model's config.json.
        environment: That of vLLM, as far as it is known beyond what the rollouts' pod template says.
    """
    spec = run.spec
    arguments = spec.rollout.engine_args
    found = [*_quantization(config)]
    if spec.rollout.image is None:
        found += _architecture(config)
    if (environment or {}).get(ALLOW_LONG, "0") != "1" and not _template_allows_long(spec):
        found += _lengths(fitted(run, config).spec, limit_of(config, arguments))
        found += _asked_length("spec.rollout", config, arguments)
    found += _dtype(config, "spec.model.dtype", spec.model.dtype)
    found += _engine(config, "spec.rollout", arguments, spec.rollout.tensor_parallel_size)
    return found


def problems_with_scorer(scorer: Scorer, config: Config) -> list[Problem]:
    """What the files of the preference's own model contradict.

    Args:
        scorer: The servers of that model.
        config: Content of the model's config.json.
    """
    found = [*_dtype(config, "spec.scorer.dtype", scorer.dtype)]
    found += _engine(config, "spec.scorer", scorer.engine_args, scorer.tensor_parallel_size)
    return [*found, *_asked_length("spec.scorer", config, scorer.engine_args)]


def _template_allows_long(spec: SpinRunSpec) -> bool:
    containers = cast(dict[str, Any], spec.rollout.template.get("spec") or {}).get("containers")
    for container in cast(list[dict[str, Any]], containers if isinstance(containers, list) else []):
        entries = container.get("env") if container.get("name") == "vllm" else None
        for entry in cast(list[dict[str, Any]], entries if isinstance(entries, list) else []):
            if entry.get("name") == ALLOW_LONG and str(entry.get("value")) == "1":
                return True
    return False


def _lengths(spec: SpinRunSpec, limit: Limit | None) -> Iterator[Problem]:
    prompt, answer = spec.max_prompt_tokens, spec.max_tokens
    if limit is not None and prompt + answer > limit.tokens:
        yield Problem(
            "spec.data.maxPromptTokens",
            f"{prompt} and spec.rollout.maxTokens {answer} make {prompt + answer} tokens, but the model reads {_said(limit)}: "
            "lower one of the two",
        )


def _asked_length(block: str, config: Config, arguments: EngineArgs) -> Iterator[Problem]:
    """Whether the user's own length for vLLM is more than the model has positions."""
    asked = _whole(arguments.get("max-model-len"))
    if asked is None or "hf-overrides" in arguments:
        return
    for limit in _limits_in_files(config, arguments):
        if limit.is_vllms and asked > limit.tokens:
            yield Problem(f"{block}.engineArgs.max-model-len", f"{asked} is more than the model's {_said(limit)}: lower it")


def _said(limit: Limit) -> str:
    return f"{limit.tokens} tokens ({limit.why})"


def _architecture(config: Config) -> Iterator[Problem]:
    architectures = config.get("architectures")
    for name in cast(list[object], architectures if isinstance(architectures, list) else []):
        if name in _NOT_SERVED:
            yield Problem(
                "spec.model.source",
                f"vLLM does not serve {name}, the architecture in its config.json: use another model, or an image of vLLM "
                "with a plugin for it as spec.rollout.image",
            )


def _quantization_of(config: Config) -> Config | None:
    for part in (config, language_part(config)):
        for name in ("quantization_config", "compression_config"):
            if isinstance(part.get(name), Mapping):
                return cast(Config, part[name])
    return None


def _quantization(config: Config) -> Iterator[Problem]:
    if (quantization := _quantization_of(config)) is not None:
        method = quantization.get("quant_method", "unnamed")
        yield Problem(
            "spec.model.source",
            f"the model is quantized (quantization_config in its config.json, method {method}): name the model that it was made "
            "from",
        )


def _dtype(config: Config, path: str, dtype: str) -> Iterator[Problem]:
    known = _DTYPES.get(dtype.lower())
    if known is None and dtype.lower() != "auto":
        yield Problem(path, f"vLLM has no dtype {dtype}: choose one of auto, float32, bfloat16 and float16")
    kind = config.get("model_type")
    if known == "float16" and kind in _NOT_IN_FLOAT16:
        yield Problem(path, f"vLLM does not serve {kind} in float16, which is too narrow for it: choose bfloat16 or float32")


def _engine(config: Config, block: str, arguments: EngineArgs, tensor_parallel_size: int) -> Iterator[Problem]:
    """What is wrong with arguments of vLLM, other than lengths."""
    if "hf-overrides" in arguments:
        return
    text = language_part(config)
    path, size = f"{block}.tensorParallelSize", tensor_parallel_size
    if size > 1 and (fault := _indivisible(text, size)):
        yield Problem(path, f"{size} GPUs cannot share the model evenly: {fault}. Choose a divisor")
    layers, stages = whole_number(text, LAYERS), _whole(arguments.get("pipeline-parallel-size"))
    if layers and stages is not None and stages > layers:
        yield Problem(
            f"{block}.engineArgs.pipeline-parallel-size", f"{stages} is more than the model's {layers} layers: lower it"
        )


def _indivisible(text: Config, size: int) -> str:
    """What a number of GPUs cannot divide; empty where it can."""
    heads = whole_number(text, HEADS)
    if heads and heads % size:
        return f"it has {heads} attention heads"
    groups = key_value_heads(text) or heads
    if groups and groups % size and size % groups:
        return f"it has {groups} key-value heads"
    vocabulary = _whole(text.get("vocab_size"))
    if vocabulary:
        padded = -(-vocabulary // _VOCABULARY_BLOCK) * _VOCABULARY_BLOCK
        if padded % size:
            return f"its vocabulary of {vocabulary} tokens is padded to {padded}"
    return ""


def key_value_heads(text: Config) -> int | None:
    """Heads that queries share, in the language part of a config.json; None where it does not say."""
    if text.get("model_type") == "falcon" and not text.get("new_decoder_architecture"):
        return 1 if text.get("multi_query", True) else None
    return whole_number(text, _KEY_VALUE_HEADS)


def whole_number(config: Config, names: tuple[str, ...]) -> int | None:
    """The first of some fields that holds a whole number other than zero; None where none does."""
    return next((number for name in names if (number := _whole(config.get(name)))), None)


def _whole(value: object) -> int | None:
    """A whole number, also as text and with vLLM's suffixes such as 4k and 4K; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        if isinstance(value, str):
            text = value.strip()
            factor = {"k": 1000, "m": 1000**2, "g": 1000**3, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
            return int(float(text.rstrip("kmgKMG")) * factor) if factor > 1 else int(text)
        return int(value)
    except (ValueError, OverflowError):
        return None


def parse_config(content: str) -> Config | None:
    """What a config.json holds; None where that is not a JSON object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return cast(Config, document) if isinstance(document, dict) else None
