"""Memory of a rank of the trainer, and of a rollout. Pure arithmetic over what the code holds.

Activations are counted as autograd keeps them of a layer of transformers (Llama, Qwen): the inputs of norms and linear layers,
the gate and its product, queries, keys and values. Sizes below: h hidden, q all query heads, k all key heads, i the feed-forward
part.
"""

from dataclasses import dataclass

from spinrun_cli.estimate.hardware import Hardware
from spinrun_cli.estimate.work import BYTES, OPTIMIZER_NUMBERS, Work

MAX_LOGITS = 1 << 25
"""Logits that the trainer computes at once: spinrun_worker.trainer.model.logprobs.MAX_LOGITS."""
SHORT = 256
"""Tokens of the longest pair up to which attention on a CPU keeps its weights: spinrun_worker.trainer.model.attention.SHORT."""
LOGIT_COPIES = 3
"""In fp32: the logits, their log-softmax and the gradient."""


@dataclass(frozen=True)
class Part:
    """One thing that takes memory."""

    name: str
    bytes: float
    how: str
    """How its size follows."""


@dataclass(frozen=True)
class Memory:
    """What a process holds at its fullest."""

    parts: tuple[Part, ...]
    limit: float
    """Bytes that there are; 0 where that is not known."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def excess(self) -> float:
        """Bytes that do not fit; 0 where all do."""
        return max(0.0, self.total - self.limit) if self.limit else 0.0


def activation_bytes(work: Work, hardware: Hardware) -> float:
    """Of one token, in all layers, as long as the backward pass has not used them."""
    shape, width = work.shape, BYTES[work.compute_dtype]
    h, q, k, i = shape.hidden, shape.query, shape.key_value, shape.intermediate
    # Norms compute in fp32: in a narrower dtype their input and what they divide it by are copies.
    of_norms = 2 * (3 * h * 4 if width == 4 else h * 4 + 2 * h * width)
    padded = not hardware.is_gpu and work.longest_prompt + 2 * work.longest_answer <= SHORT
    # Queries, keys, values and the output; padded into a batch on a CPU, the first three a second time.
    of_attention = width * (3 * q + 4 * k if padded else 2 * q + 2 * k)
    # The softmax in fp32, and for the product in the narrower dtype.
    of_weights = shape.heads * work.pair_tokens * (4 if width == 4 else 4 + width) if padded else 0.0
    of_feed_forward = width * (4 if shape.gated else 2) * i
    # An adapter keeps its layer's input, which is there anyway, and rank numbers. Frozen layers keep no input, only what the
    # activation function and the adapters need.
    of_layer = of_norms + of_attention + of_weights + of_feed_forward
    if work.activation_checkpointing:
        return shape.layers * h * width + of_layer
    return shape.layers * of_layer


def rank_memory(work: Work, hardware: Hardware) -> Memory:
    """Of a rank while it trains: on a GPU the GPU's memory, on CPUs main memory."""
    shape, share = work.shape, 1 / work.ranks
    width = BYTES[work.compute_dtype]
    is_sharded = work.ranks > 1 or (hardware.is_gpu and width != 4 and not work.adapters)
    each = "" if work.ranks == 1 else f" / {work.ranks} ranks"
    if work.adapters:
        weights = Part(
            "weights",
            (shape.parameters * width + 4 * work.adapters) * share,
            f"base in {work.compute_dtype}, adapters in fp32{each}",
        )
    else:
        weights = Part("weights", 4 * work.trained * share, f"fp32, what the optimizer updates{each}")
    numbers = OPTIMIZER_NUMBERS[work.optimizer]
    completions = work.row * 2 * work.answer_tokens / work.pair_tokens
    logits = min(MAX_LOGITS, completions * shape.vocabulary) * (4 * LOGIT_COPIES + (width if width != 4 else 0))
    if is_sharded:
        # FSDP gathers a layer while the one before computes, keeps the embedding and the output matrix, and reduces in fp32.
        outside = shape.parameters - shape.layers * shape.layer
        copies = width * (2 * shape.layer + outside) + (4 + width) * max(shape.layer, outside)
    else:
        # The gradients of embedding and output matrix before they are added up, and the embedding in a narrower dtype.
        copies = (0 if work.adapters else 2 * 4 * shape.table) + (width * shape.table if width != 4 else 0)
    activations, gradients = activation_bytes(work, hardware) * work.row, 4 * work.trained * share
    kept = f"fp32{each}"
    if work.largest_step <= work.row_tokens:
        # Of several rows the first leave gradients beside the next one's activations. Of one they take their place.
        gradients = max(0.0, gradients - activations)
        kept += ", as far as they are more than the activations that they take the place of"
    base = Part("process", hardware.process_bytes, "Python, torch, transformers")
    if hardware.is_gpu:
        base = Part("process", 1e9, "CUDA's context and kernels")
    return Memory(
        (
            base,
            weights,
            Part("gradients", gradients, kept),
            Part("optimizer", 4 * numbers * work.trained * share, f"{work.optimizer}: {numbers} of fp32 for each weight{each}"),
            Part("copies", copies, "weights gathered or converted, and gradients before they are added up"),
            Part(
                "activations",
                activations,
                f"{activation_bytes(work, hardware) / 1e3:,.0f} kB a token × {work.row:,.0f} tokens"
                + (", recomputed by layer" if work.activation_checkpointing else ""),
            ),
            Part("logits", logits, "of completions, at most 2^25 at once"),
        ),
        limit=hardware.memory if hardware.is_gpu else 0.0,
    )


def loading_memory(work: Work, hardware: Hardware) -> Memory:
    """Main memory of a rank while it loads: today every rank reads the whole model into it, in fp32."""
    shape = work.shape
    return Memory(
        (
            Part("process", hardware.process_bytes, "Python, torch, transformers"),
            Part("weights", 4 * shape.parameters, "fp32, the whole model in every rank"),
            Part("files", min(shape.stored_bytes * shape.parameters, 5e9), "the source, mapped file by file, of 5 GB at most"),
        ),
        limit=0.0,
    )


@dataclass(frozen=True)
class RolloutMemory:
    """What vLLM holds on each of its GPUs, or on a CPU."""

    memory: Memory
    cache: float
    """Bytes of the KV cache on each GPU."""
    token_bytes: float
    """Of the KV cache on each GPU, for a token."""
    sequences: float
    """Of average length that fit into the cache."""
    longest_sequences: float
    """Of the longest prompt and answer that fit."""

    @property
    def excess(self) -> float:
        """Bytes by which not even one of the longest sequences fits."""
        return self.memory.excess


def rollout_memory(work: Work, hardware: Hardware) -> RolloutMemory:
    """Of a rollout: weights, what vLLM needs besides, and what is left for the KV cache."""
    shape, width = work.shape, BYTES[work.rollout_dtype]
    weights = shape.parameters * width / work.tensor_parallel
    # Key-value heads are divided as far as there are some; beyond that each GPU has a copy of one.
    token_bytes = shape.key_value_numbers * width / min(work.tensor_parallel, shape.kv_heads)
    batch = work.batched_tokens * (2 * shape.intermediate / work.tensor_parallel + 4 * shape.hidden) * width
    logits = min(work.sequences, work.batched_tokens) * shape.vocabulary * 4 * 2
    longest = work.longest_prompt + work.longest_answer
    limit = hardware.memory * work.memory_utilization if hardware.is_gpu else 0.0
    if work.cache_bytes is not None:
        cache = work.cache_bytes
    else:
        left = limit - weights - hardware.server_bytes - batch - logits
        cache = max(left, longest * token_bytes)  # at least one of the longest sequences, or it does not start
    parts = (
        Part("process", hardware.server_bytes, "context and graphs" if hardware.is_gpu else "Python, torch, vLLM"),
        Part("weights", weights, work.rollout_dtype + (f" / {work.tensor_parallel} GPUs" if work.tensor_parallel > 1 else "")),
        Part("batch", batch + logits, f"{work.batched_tokens} tokens and the logits of {work.sequences} sequences"),
        Part("KV cache", cache, f"{token_bytes / 1e3:,.0f} kB a token"),
    )
    if not hardware.is_gpu:
        linears = shape.layers * (shape.layer - 2 * shape.hidden) * width
        parts += (
            Part("packed", linears, "linear layers once more, as a CPU's products read them"),
            Part("new version", work.version_bytes, "mapped while it is loaded"),
        )
    return RolloutMemory(
        Memory(parts, limit=limit),
        cache=cache,
        token_bytes=token_bytes,
        # Answers to one prompt share what is kept of it.
        sequences=cache / token_bytes / (work.prompt_tokens / work.answers + work.answer_tokens),
        longest_sequences=cache / token_bytes / longest,
    )
