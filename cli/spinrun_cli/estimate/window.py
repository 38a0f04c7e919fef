"""How long a window takes, by arithmetic: from the model, the hardware and the run's settings. docs/scaling.md explains it."""

from dataclasses import dataclass

from spinrun_cli.estimate.hardware import Hardware
from spinrun_cli.estimate.memory import rollout_memory
from spinrun_cli.estimate.work import BYTES, OPTIMIZER_NUMBERS, Work

SEQUENCES_IN_FLIGHT = 512
"""Answers that the trainer asks of a rollout at once: spinrun_worker.trainer.sampling.limits."""


@dataclass(frozen=True)
class Window:
    """Seconds of each phase."""

    publish: float
    activate: float
    generate: float
    """Answers to the window's prompts, and to held-out ones."""
    score: float
    checkpoint: float
    reference: float
    train: float
    total: float
    """Of the window, whose checkpoint is written while the rollouts generate."""

    @property
    def outside(self) -> float:
        """Share of it that is neither generation nor training."""
        return max(0.0, 1 - (self.generate + self.train) / self.total)


@dataclass(frozen=True)
class Generation:
    """How the rollouts generate."""

    seconds: float
    prefill: float
    """Seconds of them for reading prompts."""
    batch: float
    """Sequences at once on average."""
    tokens_per_second: float
    """Completion tokens of one rollout."""
    bound: str
    """What takes the longest: arithmetic, memory, or the fixed part."""


def window(work: Work, hardware: Hardware) -> Window:
    """Seconds of each phase of a window."""
    reads = min(hardware.volume_read / work.rollouts, hardware.rollout_read)
    publish = hardware.boundary_seconds + work.version_bytes / hardware.volume_write
    # The first rollout that serves begins; all read at once.
    activate = hardware.boundary_seconds + work.version_bytes / reads + work.version_bytes / hardware.load
    generate = generation(work, hardware).seconds
    checkpoint = work.checkpoints * work.checkpoint_bytes / hardware.volume_write
    score = (work.score_seconds or 0.0) * work.prompts * work.answers
    reference = reference_seconds(work, hardware)
    train = train_seconds(work, hardware)
    meanwhile = generate + checkpoint if work.shares_cores else max(generate, checkpoint)
    boundary = publish + activate
    ours = score + reference + train
    if work.overlap:
        total = (
            boundary + max(ours + (0.0 if work.shares_cores else checkpoint), generate) + (checkpoint if work.shares_cores else 0)
        )
    else:
        total = boundary + meanwhile + ours
    return Window(publish, activate, generate, score, checkpoint, reference, train, total)


def generation(work: Work, hardware: Hardware) -> Generation:
    """One rollout's share of a window's answers.

    A batch gives one token to each sequence in the longest of three times: its arithmetic, reading weights and KV cache from
    memory, and what no size changes.
    """
    shape, width = work.shape, BYTES[work.rollout_dtype]
    gpus = work.tensor_parallel / _sharers(work, work.rollouts)
    flops = hardware.flops(work.rollout_dtype)
    samples = (work.prompts * work.answers + work.evaluation_prompts) / work.rollouts
    at_once = min(work.sequences, SEQUENCES_IN_FLIGHT, rollout_memory(work, hardware).sequences, samples)
    at_once = max(at_once, 1.0)
    # The last answers come alone: some are twice as long as the average.
    iterations = max(samples * work.answer_tokens / at_once, min(2 * work.answer_tokens, work.longest_answer))
    batch = samples * work.answer_tokens / iterations
    arithmetic = 2 * (shape.body + shape.table) * batch / (flops * hardware.decode_utilization * gpus)
    context = work.prompt_tokens + work.answer_tokens / 2
    read = shape.parameters * width + batch * context * shape.key_value_numbers * width
    reading = read / (hardware.bandwidth * hardware.bandwidth_utilization * gpus)
    fixed = hardware.iteration_seconds + batch * hardware.token_seconds
    seconds = iterations * (max(arithmetic, reading) + fixed)
    prompts = (work.prompts + work.evaluation_prompts) / work.rollouts * work.prompt_tokens
    prefill = 2 * shape.body * prompts / (flops * hardware.prefill_utilization * gpus)
    times = {"arithmetic": arithmetic, "memory bandwidth": reading, "overhead": fixed}
    return Generation(
        seconds=seconds + prefill,
        prefill=prefill,
        batch=batch,
        tokens_per_second=samples * work.answer_tokens / (seconds + prefill),
        bound=max(times, key=lambda name: times[name]),
    )


def _sharers(work: Work, processes: int) -> float:
    """Among how many processes the hardware is divided: none, where each has its own."""
    return processes * (1 + work.overlap) if work.shares_cores else 1


def forward_flops(work: Work) -> float:
    """Of a forward pass over a window's pairs: 2 a weight and token, the output matrix at completions, attention as it is."""
    shape, tokens = work.shape, work.pairs * work.pair_tokens
    attention = 2 * shape.layers * shape.query * work.pair_tokens
    completions = work.pairs * 2 * work.answer_tokens
    return (2 * shape.body + attention) * tokens + 2 * shape.table * completions


def train_seconds(work: Work, hardware: Hardware) -> float:
    """Of a window's steps: arithmetic, or the kernels' starts, or exchange between ranks; and passes over the weights."""
    # Forward, and twice that backward; of weights that are not trained, once. Recomputed: once more.
    passes = (2 if work.adapters else 3) + work.activation_checkpointing
    starts = hardware.launch_seconds * work.shape.layers * work.pairs / work.ranks
    return max(passes * _forward(work, hardware), starts, _exchange(work, hardware, 3)) + _passes_over_weights(work, hardware)


def reference_seconds(work: Work, hardware: Hardware) -> float:
    """Of the trainer's forward pass over all but the first step's pairs."""
    if not work.reference_pass:
        return 0.0
    starts = hardware.launch_seconds / 3 * work.shape.layers * work.pairs / work.ranks
    seconds = max(_forward(work, hardware), starts, _exchange(work, hardware, 1)) + _conversion(work, hardware)
    return seconds * (work.steps - 1) / work.steps


def _forward(work: Work, hardware: Hardware) -> float:
    return forward_flops(work) / (hardware.flops(work.compute_dtype) * hardware.train_utilization * _together(work))


def _together(work: Work) -> float:
    """How many times the hardware all ranks are."""
    return work.ranks / _sharers(work, work.ranks)


def _exchange(work: Work, hardware: Hardware, times: int) -> float:
    """Weights gathered from all ranks for each row, forward and backward, and gradients reduced in fp32."""
    others = (work.ranks - 1) / work.ranks
    moved = BYTES[work.compute_dtype] * min(times, 2) * work.shape.parameters + (4 * work.trained if times > 1 else 0)
    return work.steps * work.rows * moved * others / hardware.link


def _conversion(work: Work, hardware: Hardware) -> float:
    """Weights read in fp32 and written narrower, once for each row; the adapters' base is narrow as it is."""
    width = BYTES[work.compute_dtype]
    if width == 4 or work.adapters:
        return 0.0
    moved = work.steps * work.rows * (4 + width) * work.shape.parameters / _together(work)
    return moved / (hardware.bandwidth * hardware.bandwidth_utilization)


def _passes_over_weights(work: Work, hardware: Hardware) -> float:
    """Conversion, forward and backward; gradients added up for each row; the optimizer, the norm and clipping for each step."""
    # Weight, gradient and the optimizer's numbers read, all but the gradient written; the gradient twice more for its norm.
    of_step = 4 * (3 + 1 + 2 * OPTIMIZER_NUMBERS[work.optimizer] + 1)
    of_row = 4 * 3
    moved = work.steps * (of_step + work.rows * of_row) * work.trained / _together(work)
    return moved / (hardware.bandwidth * hardware.bandwidth_utilization) + 2 * _conversion(work, hardware)
