"""What limits a run, by its estimate, and what to set."""

import math
from collections.abc import Iterator
from dataclasses import replace

from spinrun_api.spec import SpinRunSpec
from spinrun_cli.estimate.memory import rank_memory, rollout_memory
from spinrun_cli.estimate.result import Estimate, Finding, gigabytes

LONG_BOUNDARY = 0.25
"""Share of a window outside of generation and training from which on it is worth a sentence."""
ROOM = 0.9
"""Share of a GPU that a rank may fill: the estimate is not more exact than what is left."""
SEVERAL = 3.0
"""How many times longer generation or training may take than the other before it is worth one."""


def findings(spec: SpinRunSpec, done: Estimate) -> Iterator[Finding]:
    """What limits a run, and what to set.

    Args:
        spec: The run's.
        done: Its estimate.
    """
    yield from _trainer_fits(done)
    yield from _rollouts_fit(done)
    yield from _machine_fits(done)
    yield from _slow(done)
    if spec.scorers is not None:
        yield Finding("limit", "the model that prefers is not estimated, neither its memory nor its time: it has GPUs of its own")
    yield from _storage(spec, done)


def _trainer_fits(done: Estimate) -> Iterator[Finding]:
    if not done.rank.excess:
        if done.rank.limit and done.rank.total > ROOM * done.rank.limit:
            yield Finding(
                "limit",
                f"a rank fills {done.rank.total / done.rank.limit:.0%} of its GPU, and this may be 15 % off: try a short run",
            )
        return
    total, limit, excess = map(gigabytes, (done.rank.total, done.rank.limit, done.rank.excess))
    needs = f"a rank needs {total} and has {limit}, {excess} too little"
    ways = [f"{setting} ({gigabytes(total)})" for setting, total in _smaller(done)]
    if ways:
        yield Finding("problem", f"{needs}: set {', or '.join(ways[:3])}")
    else:
        yield Finding("problem", f"{needs}: train adapters (trainer.lora), or take GPUs with more memory")


def _smaller(done: Estimate) -> Iterator[tuple[str, float]]:
    """Settings with which a rank fits, the cheapest first, and what it then needs."""
    work, hardware, limit = done.work, done.hardware, ROOM * done.rank.limit

    def total(**changes: object) -> float:
        return rank_memory(replace(work, **changes), hardware).total  # pyright: ignore[reportArgumentType]

    longest = work.longest_prompt + 2 * work.longest_answer
    row = work.row_tokens
    while row > longest:
        row = max(longest, row // 2)
        if total(row_tokens=row) <= limit:
            yield f"trainer.tokensPerMicroBatch: {row}", total(row_tokens=row)
            break
    if not work.activation_checkpointing and total(activation_checkpointing=True) <= limit:
        yield "trainer.activationCheckpointing: true", total(activation_checkpointing=True)
    for checkpointing in dict.fromkeys((work.activation_checkpointing, True)):
        for times in (2, 4, 8, 16, 32, 64):
            ranks = work.ranks * times
            if total(ranks=ranks, activation_checkpointing=checkpointing) <= limit:
                also = (
                    " with trainer.activationCheckpointing: true" if checkpointing and not work.activation_checkpointing else ""
                )
                yield (
                    f"trainer.procsPerNode or nodes for {ranks} ranks{also}",
                    total(ranks=ranks, activation_checkpointing=checkpointing),
                )
                return


def _rollouts_fit(done: Estimate) -> Iterator[Finding]:
    rollout, work = done.rollout, done.work
    if rollout.excess:
        total, limit, excess = map(gigabytes, (rollout.memory.total, rollout.memory.limit, rollout.excess))
        needs = f"a rollout needs {total} on each GPU and has {limit}, {excess} too little"
        size = next((size for size in (2, 4, 8, 16) if size > work.tensor_parallel and _fits_on(done, size)), None)
        remedy = f"rollout.tensorParallelSize: {size}" if size else "a smaller model, or GPUs with more memory"
        yield Finding("problem", f"{needs}: set {remedy}" if size else f"{needs}: take {remedy}")
    elif rollout.longest_sequences < 1:
        yield Finding(
            "problem",
            f"the KV cache of {gigabytes(rollout.cache)} is less than the {work.longest_prompt + work.longest_answer} tokens of "
            "one prompt and answer: raise rollout.engineArgs.kv-cache-memory-bytes, or lower data.maxPromptTokens or "
            "rollout.maxTokens",
        )
    elif rollout.sequences < min(work.sequences, 64):
        yield Finding(
            "limit",
            f"the KV cache holds {rollout.sequences:.0f} answers of average length at once, and vLLM would take "
            f"{work.sequences}: a larger rollout.tensorParallelSize, or shorter answers, let it generate faster",
        )


def _fits_on(done: Estimate, size: int) -> bool:
    shape = done.shape
    even = shape.heads % size == 0 and (shape.kv_heads % size == 0 or size % shape.kv_heads == 0)
    return even and not rollout_memory(replace(done.work, tensor_parallel=size), done.hardware).excess


def _machine_fits(done: Estimate) -> Iterator[Finding]:
    loaded = done.loading.total * done.work.ranks_per_node
    if done.hardware.is_gpu:
        if loaded > 100e9:
            yield Finding(
                "limit",
                f"each rank loads the whole model into main memory: {gigabytes(loaded)} on a node of "
                f"{done.work.ranks_per_node} ranks, for a minute or two; give the trainer's pods as much",
            )
        return
    together = done.layout.ranks * max(done.rank.total, done.loading.total) + done.layout.rollouts * done.rollout.memory.total
    if done.hardware.memory and together > done.hardware.memory:
        yield Finding(
            "problem",
            f"trainer and rollouts need {gigabytes(together)} and the machine has {gigabytes(done.hardware.memory)}, "
            f"{gigabytes(together - done.hardware.memory)} too little: lower trainer.tokensPerMicroBatch or "
            "rollout.engineArgs.kv-cache-memory-bytes, set trainer.optimizer: rmsprop, or train adapters (trainer.lora)",
        )


def _slow(done: Estimate) -> Iterator[Finding]:
    seconds, work = done.window, done.work
    phases = {
        "generation": (seconds.generate, f"bound by {done.generation.bound}, {done.generation.batch:.0f} sequences at once"),
        "training": (seconds.train, "bound by the ranks"),
        "activation": (seconds.activate, f"{work.rollouts} rollouts read {gigabytes(done.boundary_read)} of one volume"),
        "publication": (seconds.publish, f"{gigabytes(work.version_bytes)} written to the volume"),
        "the checkpoint": (
            seconds.checkpoint if work.shares_cores else seconds.checkpoint - seconds.generate,
            f"{gigabytes(work.checkpoint_bytes)} written to the volume",
        ),
        "the reference": (seconds.reference, "a forward pass over the pairs"),
        "scoring": (seconds.score, "the rule"),
    }
    longest = max(phases, key=lambda name: phases[name][0])
    yield Finding("limit", f"{longest} takes most of a window, {phases[longest][0] / seconds.total:.0%}: {phases[longest][1]}")
    if seconds.outside > LONG_BOUNDARY:
        yield Finding(
            "advice",
            f"{seconds.outside:.0%} of a window is neither generation nor training: a longer window (method.refUpdateFreq) "
            "dilutes its boundary" + (", a volume whose reads scale with its readers shortens it" if work.rollouts > 1 else ""),
        )
    ours = seconds.train + seconds.reference
    if done.hardware.is_gpu and not done.layout.shared and ours > SEVERAL * seconds.generate:
        yield Finding("advice", "the rollouts wait for the trainer most of the time: fewer rollouts, or more ranks")
    elif done.hardware.is_gpu and not done.layout.shared and seconds.generate > SEVERAL * ours:
        yield Finding(
            "advice", "the trainer waits for the rollouts most of the time: more rollouts (rollout.replicas), or fewer ranks"
        )
    if seconds.reference > 0.1 * seconds.total:
        yield Finding("advice", "method.referenceLogprobs: rollouts saves the trainer's pass over the pairs")


def _storage(spec: SpinRunSpec, done: Estimate) -> Iterator[Finding]:
    size = spec.storage.size
    if size is None or not done.hardware.is_gpu:
        return
    there = quantity(size)
    if there is not None and done.disk.total > 0.9 * there:
        wanted = math.ceil(1.2 * done.disk.total / (1 << 30))
        yield Finding(
            "advice",
            f"the ledger grows to {gigabytes(done.disk.total)} and storage.size is {size}: set {wanted}Gi, or lower "
            "trainer.keepCheckpoints",
        )


_SUFFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": float(1 << 10 * power) for power, letter in enumerate("KMGTPE", start=1)
}


def quantity(text: str) -> float | None:
    """Bytes of a Kubernetes quantity such as 50Gi; None for a part of one, such as 100m."""
    number = text.rstrip("".join(set("".join(_SUFFIXES))))
    try:
        return float(number) * _SUFFIXES[text[len(number) :]]
    except (ValueError, KeyError):
        return None
