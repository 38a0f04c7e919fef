"""How large the parts of a model are, by its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from spinrun_protocol.model_limits import HEADS, LAYERS, Config, key_value_heads, language_part, whole_number

LARGEST = 1 << 26
"""A size in a config.json beyond this is a mistake: a vocabulary or a layer of 67 million."""
MOST_LAYERS = 10_000

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_ATTENTION = ("full_attention", "sliding_attention")

# Families whose feed-forward part is two matrices; all others have a third, the gate.
_WITHOUT_GATE = frozenset(
    {"gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "falcon", "phi", "bloom", "starcoder2", "gpt_bigcode", "mpt"}
)
# Families whose query, key and value layers have biases, which their files do not say.
_WITH_BIAS = frozenset({"qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "gpt2", "gpt_neox", "opt", "phi", "bloom", "starcoder2"})
# Families whose output matrix is the embedding, where the file does not say.
_TIED = frozenset({"gpt2", "gemma", "gemma2", "gemma3", "gemma3_text", "opt", "bloom", "falcon", "cohere", "gpt_bigcode", "mpt"})


class ShapeError(ValueError):
    """A config.json from which no shape follows. The message says what is wrong with it."""


@dataclass(frozen=True)
class Shape:
    """A dense language model of attention layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the output matrix is the embedding."""
    stored_bytes: int = 2
    """Of a weight in the model's files."""
    biased: bool = False
    """Whether query, key and value have biases."""
    gated: bool = True
    """Whether the feed-forward part has a third matrix, the gate."""
    sees_images: bool = False
    """Whether the model has a part for images, whose weights are not counted."""

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads together; that of the value heads is the same."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the linear layers of one decoder layer."""
        up = ((self.hidden, self.intermediate),) * (2 if self.gated else 1)
        keys = ((self.hidden, self.key_value),) * 2
        return (self.hidden, self.query), *keys, (self.query, self.hidden), *up, (self.intermediate, self.hidden)

    @property
    def layer(self) -> int:
        """Weights of a decoder layer."""
        biases = self.query + 2 * self.key_value if self.biased else 0
        return sum(inputs * outputs for inputs, outputs in self.matrices) + biases + 2 * self.hidden

    @property
    def body(self) -> int:
        """Weights that every token passes through: the layers and the last norm."""
        return self.layers * self.layer + self.hidden

    @property
    def table(self) -> int:
        """Weights of the embedding, and as many of the output matrix."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.body + self.table * (1 if self.tied else 2)

    @property
    def key_value_numbers(self) -> int:
        """Numbers that the KV cache keeps of a token."""
        return 2 * self.layers * self.key_value

    def adapters(self, rank: int, targets: int | None = None) -> int:
        """Weights of LoRA adapters.

        Args:
            rank: Their rank.
            targets: How many of a layer's linear layers have one; None: all.
        """
        matrices = self.matrices if targets is None else sorted(self.matrices, key=sum)[-targets:]
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in matrices)


def shape_of(config: Config) -> Shape:
    """The shape that a config.json says.

    Args:
        config: Its content.

    Raises:
        ShapeError: It does not say one, or a model that is not trained.
    """
    text = language_part(config)
    kind = str(text.get("model_type", config.get("model_type", "")))
    experts = next((name for name in _EXPERTS if (whole_number(text, (name,)) or 0) > 1), None)
    if experts is not None:
        raise ShapeError(f"{experts} {text.get(experts)}: mixtures of experts are not trained, so name a dense model")
    types = text.get("layer_types")
    if isinstance(types, list) and (others := {str(each) for each in cast(list[Any], types)}.difference(_ATTENTION)):
        raise ShapeError(
            f"layer_types has {', '.join(sorted(others))[:200]}: only layers of full or sliding attention are trained"
        )
    hidden, heads = _size(text, _HIDDEN), _size(text, HEADS)
    head_dim = _optional(text, ("head_dim",)) or hidden // heads
    if head_dim < 1:
        raise ShapeError(f"{heads} attention heads cannot share a hidden size of {hidden}")
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    biased = text.get("attention_bias", text.get("qkv_bias"))
    return Shape(
        layers=_size(text, LAYERS, most=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=_within("num_key_value_heads", key_value_heads(text) or heads, most=heads),
        head_dim=head_dim,
        intermediate=_optional(text, _INTERMEDIATE) or 4 * hidden,
        vocabulary=_size(text, ("vocab_size",)),
        tied=tied if isinstance(tied, bool) else kind in _TIED,
        stored_bytes=_stored_bytes(config, text),
        biased=biased if isinstance(biased, bool) else kind in _WITH_BIAS,
        gated=kind not in _WITHOUT_GATE,
        sees_images=isinstance(config.get("vision_config"), Mapping),
    )


def _size(text: Config, names: tuple[str, ...], *, most: int = LARGEST) -> int:
    number = _optional(text, names, most=most)
    if number is None:
        raise ShapeError(f"it has no {names[0]} that is a whole number")
    return number


def _optional(text: Config, names: tuple[str, ...], *, most: int = LARGEST) -> int | None:
    number = whole_number(text, names)
    return None if number is None else _within(next(name for name in names if text.get(name) is not None), number, most=most)


def _within(name: str, number: int, *, most: int) -> int:
    if not 1 <= number <= most:
        shown = str(number) if abs(number) < 10**12 else "it"
        raise ShapeError(f"{name}: {shown} is not from 1 to {most}")
    return number


def _stored_bytes(config: Config, text: Config) -> int:
    for part in (text, config):
        for name in ("dtype", "torch_dtype"):
            if (found := _BYTES.get(str(part.get(name)).removeprefix("torch."))) is not None:
                return found
    return 4


def _published(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocabulary: int,
    *,
    tied: bool,
    head_dim: int = 0,
    biased: bool = False,
) -> Shape:
    return Shape(layers, hidden, heads, kv_heads, head_dim or hidden // heads, intermediate, vocabulary, tied, biased=biased)


KNOWN = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _published(30, 576, 9, 3, 1536, 49152, tied=True),
    "Qwen/Qwen2.5-0.5B-Instruct": _published(24, 896, 14, 2, 4864, 151936, tied=True, biased=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _published(28, 1536, 12, 2, 8960, 151936, tied=True, biased=True),
    "Qwen/Qwen2.5-3B-Instruct": _published(36, 2048, 16, 2, 11008, 151936, tied=True, biased=True),
    "Qwen/Qwen2.5-7B-Instruct": _published(28, 3584, 28, 4, 18944, 152064, tied=False, biased=True),
    "Qwen/Qwen2.5-14B-Instruct": _published(48, 5120, 40, 8, 13824, 152064, tied=False, biased=True),
    "Qwen/Qwen2.5-32B-Instruct": _published(64, 5120, 40, 8, 27648, 152064, tied=False, biased=True),
    "Qwen/Qwen2.5-72B-Instruct": _published(80, 8192, 64, 8, 29568, 152064, tied=False, biased=True),
    "meta-llama/Llama-3.1-8B-Instruct": _published(32, 4096, 32, 8, 14336, 128256, tied=False),
    "meta-llama/Llama-3.1-70B-Instruct": _published(80, 8192, 64, 8, 28672, 128256, tied=False),
}
"""Shapes of models of the Hub as their config.json had them, for where the Hub cannot be reached."""
