"""The estimate of a SpinRun: what its processes hold, what a window takes, what the volume has to bear, and what limits it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from pydantic.alias_generators import to_camel

from spinrun_api.run import SpinRun
from spinrun_api.spec import SpinRunSpec
from spinrun_cli.estimate.findings import findings
from spinrun_cli.estimate.hardware import WHY_CPU, WHY_GPU, Hardware, assumed
from spinrun_cli.estimate.memory import loading_memory, rank_memory, rollout_memory
from spinrun_cli.estimate.result import Assumption, Disk, Estimate, Layout
from spinrun_cli.estimate.shape import Shape
from spinrun_cli.estimate.window import generation, window
from spinrun_cli.estimate.work import Work
from spinrun_protocol.commands import CPU_CACHE_BYTES
from spinrun_worker.trainer.schedule import Schedule, make_schedule

SHARED_GPU_MEMORY = 0.4
"""Share of a GPU that vLLM servers take beside a rank: spinrun_cli.local.machine.SHARED_GPU_MEMORY."""
SAMPLE_BYTES = 60.0
"""Of a sample on the ledger, beside its tokens."""
SAMPLE_TOKEN_BYTES = 8.0
"""Of each token of it: its id, and its text."""


class LayoutError(ValueError):
    """GPUs that do not suit the run. The message says what to set."""


@dataclass(frozen=True)
class Data:
    """What is known of the run's data without reading all of it."""

    prompts: int | None = None
    """To train on; None: not known."""
    evaluation: int | None = None
    """Held-out ones."""


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
    numbers = _Numbers(
        work.prompt_tokens, work.answer_tokens, work.pairs_per_prompt, work.evaluation_prompts, work.score_seconds or 0.0
    )
    hardware, numbers = assumed(given, hardware, numbers)
    scored = work.score_seconds is not None or "scoreSeconds" in given
    work = replace(
        work,
        prompt_tokens=numbers.prompt_tokens,
        answer_tokens=numbers.answer_tokens,
        pairs_per_prompt=numbers.pairs_per_prompt,
        evaluation_prompts=numbers.evaluation_prompts,
        score_seconds=numbers.score_seconds if scored else None,
        prompts=_prompts(spec, _own_steps(spec, schedule), numbers.pairs_per_prompt),
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
    return replace(done, findings=tuple(findings(spec, done)))


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
    used = f"the run uses {wanted} GPUs: {ranks} for the trainer, {servers} for rollouts" + (
        f", {scorers} for scorers" if scorers else ""
    )
    if gpus is None or gpus == wanted:
        return Layout(wanted, ranks, rollout.replicas, rollout.tensor_parallel_size, scorers)
    if gpus > wanted:
        more = max(ranks, (gpus - scorers) // 2)
        replicas = max(rollout.replicas, (gpus - scorers - more) // rollout.tensor_parallel_size)
        raise LayoutError(
            f"--gpus {gpus}: {used}; the others would stay idle. Give them work, as in "
            f"--set spec.trainer.procsPerNode={max(1, more // trainer.nodes)} --set spec.rollout.replicas={replicas}, or say "
            f"--gpus {wanted}"
        )
    least = max(ranks, rollout.tensor_parallel_size)
    if gpus < least:
        raise LayoutError(
            f"--gpus {gpus}: {used}, and needs {least} at least, since neither two ranks nor the parts of one rollout share a "
            "GPU: lower spec.trainer.procsPerNode or spec.rollout.tensorParallelSize, or say more GPUs"
        )
    return Layout(
        gpus, ranks, rollout.replicas, rollout.tensor_parallel_size, scorers, shared=max(1, math.ceil((servers + scorers) / gpus))
    )


def _schedule(spec: SpinRunSpec, data: Data) -> Schedule | None:
    """The run's windows; None where they depend on how many prompts there are, and nobody knows."""
    if spec.duration.epochs is not None and not data.prompts:
        return None
    return make_schedule(spec, num_prompts=data.prompts or 1)


def _own_steps(spec: SpinRunSpec, schedule: Schedule | None) -> int:
    """Steps of a window without those on replayed pairs; fewer in a run that is shorter than one."""
    steps = spec.method.steps_per_window
    return steps if schedule is None else max(1, min(steps, schedule.total_steps))


def _prompts(spec: SpinRunSpec, steps: int, pairs_per_prompt: float) -> float:
    """Prompts of a window: as many as the spec says, or as it takes to have the pairs that it says."""
    trainer, method = spec.trainer, spec.method
    asked = trainer.least_prompts_per_step * steps
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
    own_steps = _own_steps(spec, schedule)
    steps = own_steps * (1 + method.replay_windows)
    work = Work(
        shape=shape,
        prompts=_prompts(spec, own_steps, pairs),
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
        tensor_parallel=layout.tensor_parallel if hardware.is_gpu else 1,  # on CPUs its parts share one machine
        row_tokens=trainer.tokens_per_micro_batch,
        compute_dtype=auto if trainer.compute_dtype == "auto" else trainer.compute_dtype,
        published_dtype=stored if spec.model.dtype == "auto" else spec.model.dtype,
        rollout_dtype=auto if spec.model.dtype == "auto" else spec.model.dtype,
        optimizer=trainer.optimizer,
        activation_checkpointing=trainer.activation_checkpointing,
        adapters=_adapters(spec, shape),
        reference_pass=method.reference_logprobs == "trainer" and method.uses_reference,
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
    if method.loss in ("sppoAdvantage", "grpo"):
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
    versions = (
        kept
        + 1
        + (spec.data.evaluation is not None)
        + (method.uses_reference and method.windows_per_reference != 1)
        + (method.overlap > 0)
    )
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
    why_of_hardware = WHY_GPU if hardware.is_gpu else WHY_CPU
    reasons = [(field, getattr(work, field), why) for field, why in of_data.items()]
    reasons += [(field.name, getattr(hardware, field.name), why_of_hardware.get(field.name)) for field in fields(hardware)]
    for field, value, why in reasons:
        name = to_camel(field)
        if name in given:
            yield Assumption(name, value, "as given", given=True)
        elif why is not None and value:
            yield Assumption(name, value, why)
