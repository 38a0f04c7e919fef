"""How long a window takes, by arithmetic: from a model's size, the hardware and the run's settings. docs/scaling.md explains it.

python tests/bench/scaling.py         # the tables of docs/scaling.md
"""

from dataclasses import dataclass, replace

GB = 1e9
TFLOPS = 1e12


@dataclass(frozen=True)
class Hardware:
    """What a rank, a rollout and the volume between them can do."""

    flops: float
    """Of a rank's matrix products, FLOP/s."""
    utilization: float
    """Share of them that a train step reaches."""
    generation_tokens: float
    """Completion tokens per second of one rollout with a full batch."""
    volume_write: float
    """Bytes per second of the ledger's volume, all writers together."""
    volume_read: float
    """Bytes per second of it, all readers together."""
    rollout_read: float
    """Bytes per second that one rollout can read and write to its scratch space, whatever the volume could give."""
    load: float
    """Bytes per second at which vLLM loads staged weights."""
    fixed: float = 0.3
    """Seconds of a boundary that no size changes: small calls, fsync, manifests."""


@dataclass(frozen=True)
class Work:
    """A window."""

    parameters: float
    prompts: int
    answers: int
    """To each prompt."""
    prompt_tokens: float
    answer_tokens: float
    pairs_per_prompt: float = 0.7
    """Prompts that are no tie."""
    steps: int = 16
    ranks: int = 1
    rollouts: int = 1
    published_bytes: float = 2.0
    """Of a weight in a version."""
    optimizer_bytes: float = 12.0
    """Of a weight in a checkpoint: AdamW's two numbers and the weight, fp32."""
    reference_pass: bool = True
    """Whether the trainer computes the reference; else the rollouts say it."""
    shares_cores: bool = False
    """Whether trainer and rollout are on the same cores, so that a checkpoint takes its time from the generation."""


@dataclass(frozen=True)
class Window:
    """Seconds of each phase."""

    publish: float
    activate: float
    generate: float
    checkpoint: float
    reference: float
    train: float
    total: float
    """Of the window, whose checkpoint is written while the rollouts generate."""

    @property
    def outside(self) -> float:
        """Share of it that is neither generation nor training."""
        return 1 - (self.generate + self.train) / self.total


def window(work: Work, hardware: Hardware) -> Window:
    """Seconds of each phase of a window."""
    version = work.parameters * work.published_bytes
    pairs = work.prompts * work.pairs_per_prompt
    tokens = pairs * (work.prompt_tokens + 2 * work.answer_tokens)
    forward = 2 * work.parameters * tokens / (hardware.flops * hardware.utilization * work.ranks)
    reads = min(hardware.volume_read / work.rollouts, hardware.rollout_read)
    publish = hardware.fixed + version / hardware.volume_write
    # The first rollout that serves begins; all read at once.
    activate = hardware.fixed + version / reads + version / hardware.load
    generate = work.prompts * work.answers * work.answer_tokens / (hardware.generation_tokens * work.rollouts)
    checkpoint = work.parameters * work.optimizer_bytes / hardware.volume_write
    reference = forward * (work.steps - 1) / work.steps if work.reference_pass else 0.0
    train = 3 * forward
    both = generate + checkpoint if work.shares_cores else max(generate, checkpoint)
    return Window(publish, activate, generate, checkpoint, reference, train, total=publish + activate + both + reference + train)


TWO_CORES = Hardware(
    flops=0.413 * TFLOPS,
    utilization=0.45,
    generation_tokens=300,
    volume_write=1.8 * GB,
    volume_read=4 * GB,
    rollout_read=2 * GB,
    load=1.1 * GB,
)
"""The machine of docs/benchmarks.md."""

H100 = Hardware(
    flops=800 * TFLOPS,
    utilization=0.4,
    generation_tokens=12_000,
    volume_write=2 * GB,
    volume_read=4 * GB,
    rollout_read=3 * GB,
    load=10 * GB,
)
"""One H100 a rank and one a rollout, an NFS server of 32 Gbit/s: taken from data sheets, not measured."""

DEMO = Work(
    parameters=135e6,
    prompts=64,
    answers=8,
    prompt_tokens=44,
    answer_tokens=12.5,
    steps=4,
    published_bytes=4,
    optimizer_bytes=8,
    shares_cores=True,
)
SEVEN_B = Work(parameters=7.6e9, prompts=1024, answers=8, prompt_tokens=150, answer_tokens=400, ranks=8, rollouts=8)


def limit_of_rollouts(work: Work, hardware: Hardware, *, share: float = 0.05) -> int:
    """Most rollouts with which activation is at most a share of the window."""
    rollouts = 1
    while True:
        more = replace(work, rollouts=rollouts + 1, ranks=rollouts + 1)
        seconds = window(more, hardware)
        if seconds.activate > share * seconds.total or rollouts > 4096:
            return rollouts
        rollouts += 1


def main() -> None:
    """Prints the tables."""
    print("| run | publish | activate | generate | checkpoint | reference | train | window | outside |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = {"demo, two cores": (DEMO, TWO_CORES)}
    for count in (1, 8, 32, 128):
        cases[f"7B, {count} ranks, {count} rollouts"] = replace(SEVEN_B, ranks=count, rollouts=count), H100
    cases["70B, 64 ranks, 64 rollouts"] = replace(SEVEN_B, parameters=70e9, ranks=64, rollouts=64), H100
    for name, (work, hardware) in cases.items():
        seconds = window(work, hardware)
        phases = (
            seconds.publish,
            seconds.activate,
            seconds.generate,
            seconds.checkpoint,
            seconds.reference,
            seconds.train,
            seconds.total,
        )
        print(f"| {name} | {' | '.join(f'{each:.1f}' for each in phases)} | {seconds.outside:.0%} |")
    print(f"\n7B: activation stays below 5 % of a window up to {limit_of_rollouts(SEVEN_B, H100)} rollouts")


if __name__ == "__main__":
    main()
