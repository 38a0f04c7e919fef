"""The estimate of a SpinRun: what its processes hold, what a window takes, what the volume has to bear, and what limits it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from spinrun_api.run import SpinRun
from spinrun_api.spec import SpinRunSpec
from spinrun_cli.estimate.hardware import WHY_CPU, WHY_GPU, AssumptionError, Hardware, assumed
from spinrun_cli.estimate.memory import Memory, Part, RolloutMemory, loading_memory, rank_memory, rollout_memory
from spinrun_cli.estimate.shape import Shape
from spinrun_cli.estimate.window import Generation, Window, generation, window
from spinrun_cli.estimate.work import Work
from spinrun_protocol.commands import CPU_CACHE_BYTES
from spinrun_worker.trainer.schedule import Schedule, make_schedule

SHARED_GPU_MEMORY = 0.4
"""Share of a GPU that vLLM servers take beside a rank: spinrun_cli.local.machine.SHARED_GPU_MEMORY."""
SAMPLE_BYTES = 60.0
"""Of a sample on the ledger, beside its tokens."""
SAMPLE_TOKEN_BYTES = 8.0
"""Of each token of it: its id, and its text."""
LONG_BOUNDARY = 0.25
"""Share of a window outside of generation and training from which on it is worth a sentence."""
SEVERAL = 3.0
"""How many times longer generation or training may take than the other before it is worth one."""


class LayoutError(ValueError):
    """GPUs that do not suit the run. The message says what to set."""


@dataclass(frozen=True)
class Data:
    """What is known of the run's data without reading all of it."""

    prompts: int | None = None
    """To train on; None: not known."""
    evaluation: int | None = None
    """Held-out ones."""


@dataclass(frozen=True)
class Assumption:
    """A number that the spec does not say."""

    name: str
    value: float
    why: str
    given: bool = False
    """Whether the user gave it."""


@dataclass(frozen=True)
class Layout:
    """Where the processes are."""

    gpus: int
    """In all; 0 on CPUs."""
    ranks: int
    rollouts: int
    tensor_parallel: int
    scorers: int
    """GPUs of scorers."""
    shared: int = 0
    """vLLM servers that share a GPU with a rank, on the GPU that has most of them; 0: every process has its own."""


@dataclass(frozen=True)
class Disk:
    """Bytes on the ledger's volume at the run's fullest moment."""

    versions: float
    num_versions: int
    checkpoints: float
    num_checkpoints: int
    samples: float | None
    """Of all windows; None where their number is not known."""
    scratch: float
    """Of each rollout in pods, for two versions; `spinrun local` links them."""

    @property
    def total(self) -> float:
        """On the volume, as far as it is known."""
        return self.versions + self.checkpoints + (self.samples or 0.0)


@dataclass(frozen=True)
class Finding:
    """What limits the run, and what to set."""

    kind: str
    """problem: it will not run so. limit: what costs most. advice: what could be set."""
    text: str


@dataclass(frozen=True)
class Estimate:
    """All of it."""

    name: str
    shape: Shape
    work: Work
    hardware: Hardware
    layout: Layout
    rank: Memory
    loading: Memory
    rollout: RolloutMemory
    generation: Generation
    window: Window
    windows: int | None
    """Of the run; None where it depends on the size of its data."""
    boundary_written: float
    """Bytes of a version and a checkpoint."""
    boundary_read: float
    """Bytes that all rollouts read of a version."""
    disk: Disk
    findings: tuple[Finding, ...]
    assumptions: tuple[Assumption, ...]

    @property
    def fits(self) -> bool:
        """Whether it can run so."""
        return not any(finding.kind == "problem" for finding in self.findings)

    @property
    def seconds(self) -> float | None:
        """Of all windows."""
        return None if self.windows is None else self.windows * self.window.total


def estimate(
    run: SpinRun,
    shape: Shape,
    hardware: Hardware,
    *,
    gpus: int | None = None,
    data: Data | None = None,
    given: Mapping[str, float] | None = None,
    auto_dtype: str = "bfloat16",
) -> Estimate:
    """What a run will need.

    Args:
        run: The run, its lengths fitted to the model.
        shape: The model's.
        hardware: Of a rank, of a rollout's GPU and of the volume.
        gpus: GPUs that there are; None: as many as the run uses.
        data: What is known of the data.
        given: Assumptions by name, in place of those that there are.
        auto_dtype: What the dtype `auto` of the arithmetic stands for on CPUs.

    Raises:
        LayoutError: The GPUs do not suit the run.
        AssumptionError: One is unknown or impossible.
    """
    spec, data, given = run.spec, data or Data(), dict(given or {})
    layout = _layout(spec, hardware, gpus)
    schedule = _schedule(spec, data)
    work, of_data = _work(spec, shape, hardware, layout, data, schedule, auto_dtype)
    numbers = _Numbers(work.prompt_tokens, work.answer_tokens, work.pairs_per_prompt, work.evaluation_prompts, work.score_seconds or 0.0)
    hardware, numbers = assumed(given, hardware, numbers)
    scored = work.score_seconds is not None or "score_seconds" in given
    work = replace(
        work,
        prompt_tokens=numbers.prompt_tokens,
        answer_tokens=numbers.answer_tokens,
        pairs_per_prompt=numbers.pairs_per_prompt,
        evaluation_prompts=numbers.evaluation_prompts,
        score_seconds=numbers.score_seconds if scored else None,
        prompts=_prompts(spec, numbers.pairs_per_prompt),
    )
    rank, rollout = rank_memory(work, hardware), rollout_memory(work, hardware)
    if layout.shared:
        rank = replace(rank, limit=hardware.memory * (1 - SHARED_GPU_MEMORY))
    loading = loading_memory(work, hardware)
    windows = None if schedule is None else schedule.windows
    done = Estimate(
        name=run.metadata.name,
        shape=shape,
        work=work,
        hardware=hardware,
        layout=layout,
        rank=rank,
        loading=loading,
        rollout=rollout,
        generation=generation(work, hardware),
        window=window(work, hardware),
        windows=windows,
        boundary_written=work.version_bytes + work.checkpoints * work.checkpoint_bytes,
        boundary_read=work.version_bytes * work.rollouts,
        disk=_disk(spec, work, windows),
        findings=(),
        assumptions=tuple(_assumptions(work, hardware, of_data, given)),
    )
    return replace(done, findings=tuple(_findings(spec, done)))


@dataclass(frozen=True)
class _Numbers:
    """What the data and the model decide, and nobody knows before."""

    prompt_tokens: float
    answer_tokens: float
    pairs_per_prompt: float
    evaluation_prompts: float
    score_seconds: float


def _layout(spec: SpinRunSpec, hardware: Hardware, gpus: int | None) -> Layout:
    trainer, rollout = spec.trainer, spec.rollout
    ranks, servers = trainer.nodes * trainer.procs_per_node, rollout.replicas * rollout.tensor_parallel_size
    scorers = spec.scorers.replicas * spec.scorers.tensor_parallel_size if spec.scorers is not None else 0
    if not hardware.is_gpu:
        if gpus is not None:
            raise LayoutError("--gpus counts GPUs, and there are none with --gpu cpu: remove it, or name a GPU")
        return Layout(0, trainer.procs_per_node, rollout.replicas, rollout.tensor_parallel_size, scorers)
    wanted = ranks + servers + scorers
    used = f"the run uses {wanted} GPUs: {ranks} for the trainer, {servers} for rollouts" + (f", {scorers} for scorers" if scorers else "")
    if gpus is None or gpus == wanted:
        return Layout(wanted, ranks, rollout.replicas, rollout.tensor_parallel_size, scorers)
    if gpus > wanted:
        more = max(ranks, (gpus - scorers) // 2)
        replicas = max(rollout.replicas, (gpus - scorers - more) // rollout.tensor_parallel_size)
        raise LayoutError(
            f"--gpus {gpus}: {used}; the others would stay idle. Give them work, as in --set "
            f"spec.trainer.procsPerNode={max(1, more // trainer.nodes)} --set spec.rollout.replicas={replicas}, or say --gpus {wanted}"
        )
    least = max(ranks, rollout.tensor_parallel_size)
    if gpus < least:
        raise LayoutError(
            f"--gpus {gpus}: {used}, and needs {least} at least, since neither two ranks nor the parts of one rollout share a GPU: "
            "lower spec.trainer.procsPerNode or spec.rollout.tensorParallelSize, or say more GPUs"
        )
    return Layout(
        gpus, ranks, rollout.replicas, rollout.tensor_parallel_size, scorers, shared=max(1, math.ceil((servers + scorers) / gpus))
    )


def _schedule(spec: SpinRunSpec, data: Data) -> Schedule | None:
    """The run's windows; None where they depend on how many prompts there are, and nobody knows."""
    if spec.duration.epochs is not None and not data.prompts:
        return None
    return make_schedule(spec, num_prompts=data.prompts or 1)


def _prompts(spec: SpinRunSpec, pairs_per_prompt: float) -> float:
    """Prompts of a window: as many as the spec says, or as it takes to have the pairs that it says."""
    trainer, method = spec.trainer, spec.method
    asked = trainer.least_prompts_per_step * method.steps_per_window
    if trainer.pairs_per_step is None:
        return asked
    most = method.sampling.max_prompts_factor if method.sampling else 4.0
    return asked * min(most, max(1.0, 1 / pairs_per_prompt))


def _work(
    spec: SpinRunSpec, shape: Shape, hardware: Hardware, layout: Layout, data: Data, schedule: Schedule | None, auto_dtype: str
) -> tuple[Work, dict[str, str]]:
    """The work of a window, and where its assumed numbers come from."""
    trainer, rollout, method, arguments = spec.trainer, spec.rollout, spec.method, spec.rollout.engine_args
    stored = {4: "float32", 2: "bfloat16"}[shape.stored_bytes]
    auto = "bfloat16" if hardware.is_gpu else auto_dtype
    pairs, why_pairs = _pairs(spec)
    score, why_score = _score(spec)
    held_out = spec.data.evaluation
    every = held_out.every_windows if held_out is not None else 1
    steps = method.steps_per_window * (1 + method.replay_windows)
    if schedule is not None:
        steps = min(steps, max(1, schedule.total_steps))
    work = Work(
        shape=shape,
        prompts=_prompts(spec, pairs),
        answers=rollout.samples_per_prompt,
        prompt_tokens=max(1.0, spec.max_prompt_tokens / 4),
        answer_tokens=max(1.0, spec.max_tokens / 2),
        longest_prompt=spec.max_prompt_tokens,
        longest_answer=spec.max_tokens,
        pairs_per_prompt=pairs,
        steps=steps,
        replayed=method.replay_windows,
        ranks=layout.ranks,
        ranks_per_node=trainer.procs_per_node,
        rollouts=layout.rollouts,
        tensor_parallel=layout.tensor_parallel,
        row_tokens=trainer.tokens_per_micro_batch,
        compute_dtype=auto if trainer.compute_dtype == "auto" else trainer.compute_dtype,
        published_dtype=stored if spec.model.dtype == "auto" else spec.model.dtype,
        rollout_dtype=auto if spec.model.dtype == "auto" else spec.model.dtype,
        optimizer=trainer.optimizer,
        activation_checkpointing=trainer.activation_checkpointing,
        adapters=_adapters(spec, shape),
        reference_pass=method.reference_logprobs == "trainer",
        overlap=method.overlap > 0,
        shares_cores=not hardware.is_gpu,
        evaluation_prompts=(data.evaluation or 0) / every,
        checkpoints=1.0 if trainer.checkpoint_every_steps is None else steps / trainer.checkpoint_every_steps,
        score_seconds=score,
        sequences=_argument(arguments, "max-num-seqs") or hardware.sequences,
        batched_tokens=_argument(arguments, "max-num-batched-tokens") or hardware.batched_tokens,
        memory_utilization=_memory_share(arguments, layout),
        cache_bytes=_argument(arguments, "kv-cache-memory-bytes") or (None if hardware.is_gpu else CPU_CACHE_BYTES),
    )
    evaluated = "no held-out prompts" if held_out is None else f"{data.evaluation or 'an unknown number'} every {every} windows"
    return work, {
        "prompt_tokens": "a quarter of the longest; a look at the data says more",
        "answer_tokens": "half of the longest; the model decides",
        "pairs_per_prompt": why_pairs,
        "evaluation_prompts": f"a window: {evaluated}",
        "score_seconds": why_score,
    }


def _pairs(spec: SpinRunSpec) -> tuple[float, str]:
    """Pairs that a prompt makes, and why."""
    answers, method = spec.rollout.samples_per_prompt, spec.method
    if method.name == "spin":
        return float(answers), "each answer against the true one"
    if method.loss == "sppoAdvantage":
        return max(0.5, answers / 2), "every answer is trained on, in twos"
    if method.pairing == "allPairs":
        return 0.7 * answers * (answers - 1) / 4, "half of all pairs of seven prompts in ten; the others tie"
    return 0.7, "three prompts in ten tie; from 0.2 to 0.9 with rules"


def _score(spec: SpinRunSpec) -> tuple[float | None, str]:
    """Seconds of an answer, and why."""
    rule = spec.preference.scoring
    if rule is None:
        return None, "another model says it, whose time is not known: not in the window"
    if rule.kind in ("math", "python"):
        return 2e-3, f"rule {rule.kind}; not measured"
    return 1e-4, f"rule {rule.kind}"


def _adapters(spec: SpinRunSpec, shape: Shape) -> int:
    lora = spec.trainer.lora
    if lora is None:
        return 0
    return shape.adapters(lora.rank, None if lora.targets is None else min(len(lora.targets), len(shape.matrices)))


def _argument(arguments: Mapping[str, str | int], name: str) -> int | None:
    """A whole number of vLLM's arguments; None where there is none that is one."""
    try:
        number = int(arguments[name])
    except (KeyError, ValueError):
        return None
    return number if number > 0 else None


def _memory_share(arguments: Mapping[str, str | int], layout: Layout) -> float:
    try:
        share = float(arguments["gpu-memory-utilization"])
    except (KeyError, ValueError):
        share = 0.92
    return SHARED_GPU_MEMORY / layout.shared if layout.shared else min(1.0, max(0.01, share))


def _disk(spec: SpinRunSpec, work: Work, windows: int | None) -> Disk:
    """The fullest moment: a checkpoint has just been written, and the oldest is not deleted yet."""
    method, kept = spec.method, spec.trainer.keep_checkpoints
    # Those that the kept checkpoints' windows begin with, the newest, the best, and references and samplers that are older.
    versions = kept + 1 + (spec.data.evaluation is not None) + (method.windows_per_reference != 1) + (method.overlap > 0)
    per_window = max(work.checkpoints, 1e-9)
    checkpoints = kept + 1
    if windows is not None:
        versions = min(versions, windows + 1)
        checkpoints = min(checkpoints, max(1, math.floor(windows * per_window)))
    sample = SAMPLE_BYTES + SAMPLE_TOKEN_BYTES * (work.answer_tokens + work.prompt_tokens / work.answers)
    pair = SAMPLE_BYTES + SAMPLE_TOKEN_BYTES * work.pair_tokens
    of_window = work.prompts * work.answers * sample + work.pairs * pair
    return Disk(
        versions=versions * work.version_bytes,
        num_versions=versions,
        checkpoints=checkpoints * work.checkpoint_bytes,
        num_checkpoints=checkpoints,
        samples=None if windows is None else windows * of_window,
        scratch=2 * work.version_bytes,
    )


def _assumptions(work: Work, hardware: Hardware, of_data: Mapping[str, str], given: Mapping[str, float]) -> Iterator[Assumption]:
    for name, why in of_data.items():
        value = getattr(work, name)
        if value is not None and (value or name in given):
            yield Assumption(name, value, "as given" if name in given else why, name in given)
    for field in fields(hardware):
        why = (WHY_GPU if hardware.is_gpu else WHY_CPU).get(field.name)
        if field.name in given or (why is not None and getattr(hardware, field.name)):
            yield Assumption(field.name, getattr(hardware, field.name), "as given" if field.name in given else why or "", field.name in given)


# --- what limits it -----------------------------------------------------------------------------------------------------


def _findings(spec: SpinRunSpec, done: Estimate) -> Iterator[Finding]:
    yield from _trainer_fits(done)
    yield from _rollouts_fit(done)
    yield from _machine_fits(done)
    yield from _slow(done)
    yield from _storage(spec, done)


def _trainer_fits(done: Estimate) -> Iterator[Finding]:
    if not done.rank.excess:
        return
    needs = f"a rank needs {gigabytes(done.rank.total)} and has {gigabytes(done.rank.limit)}, {gigabytes(done.rank.excess)} too little"
    ways = [f"{setting} ({gigabytes(total)})" for setting, total in _smaller(done)]
    if ways:
        yield Finding("problem", f"{needs}: set {', or '.join(ways[:3])}")
    else:
        yield Finding("problem", f"{needs}: train adapters (trainer.lora), or take GPUs with more memory")


def _smaller(done: Estimate) -> Iterator[tuple[str, float]]:
    """Settings with which a rank fits, the cheapest first, and what it then needs."""
    work, hardware, limit = done.work, done.hardware, done.rank.limit

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
                also = " with trainer.activationCheckpointing: true" if checkpointing and not work.activation_checkpointing else ""
                yield f"trainer.procsPerNode or nodes for {ranks} ranks{also}", total(ranks=ranks, activation_checkpointing=checkpointing)
                return


def _rollouts_fit(done: Estimate) -> Iterator[Finding]:
    rollout, work = done.rollout, done.work
    if rollout.excess:
        memory = rollout.memory
        needs = f"a rollout needs {gigabytes(memory.total)} on each GPU and has {gigabytes(memory.limit)}, {gigabytes(rollout.excess)} too little"
        size = next((size for size in (2, 4, 8, 16) if size > work.tensor_parallel and _fits_on(done, size)), None)
        remedy = f"rollout.tensorParallelSize: {size}" if size else "a smaller model, or GPUs with more memory"
        yield Finding("problem", f"{needs}: set {remedy}" if size else f"{needs}: take {remedy}")
    elif rollout.longest_sequences < 1:
        yield Finding(
            "problem",
            f"the KV cache of {gigabytes(rollout.cache)} is less than the {work.longest_prompt + work.longest_answer} tokens of one "
            "prompt and answer: raise rollout.engineArgs.kv-cache-memory-bytes, or lower data.maxPromptTokens or rollout.maxTokens",
        )
    elif rollout.sequences < min(work.sequences, 64):
        yield Finding(
            "limit",
            f"the KV cache holds {rollout.sequences:.0f} answers of average length at once, and vLLM would take {work.sequences}: a "
            "larger rollout.tensorParallelSize, or shorter answers, let it generate faster",
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
                f"each rank loads the whole model into main memory: {gigabytes(loaded)} on a node of {done.work.ranks_per_node} ranks, "
                "for a minute or two; give the trainer's pods as much",
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
            f"{seconds.outside:.0%} of a window is neither generation nor training: a longer window (method.refUpdateFreq) dilutes "
            "its boundary" + (", a volume whose reads scale with its readers shortens it" if work.rollouts > 1 else ""),
        )
    ours = seconds.train + seconds.reference
    if done.hardware.is_gpu and not done.layout.shared and ours > SEVERAL * seconds.generate:
        yield Finding("advice", "the rollouts wait for the trainer most of the time: fewer rollouts, or more ranks")
    elif done.hardware.is_gpu and not done.layout.shared and seconds.generate > SEVERAL * ours:
        yield Finding("advice", "the trainer waits for the rollouts most of the time: more rollouts (rollout.replicas), or fewer ranks")
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


def gigabytes(number: float) -> str:
    """Bytes for people, in thousands: as data sheets and `df -H` count."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return f"{number / 1e3:.3g} kB"


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


__all__ = ["Assumption", "AssumptionError", "Data", "Estimate", "Finding", "LayoutError", "Part", "estimate", "gigabytes"]
