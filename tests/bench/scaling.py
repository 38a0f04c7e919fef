"""How long a window takes on more and more hardware, by the arithmetic of `spinrun estimate`. docs/scaling.md explains it.

python tests/bench/scaling.py         # the tables of docs/scaling.md
"""

from dataclasses import replace

from spinrun_cli.estimate.hardware import CARDS, GB, TFLOPS, Hardware, Speeds, of_card, of_machine
from spinrun_cli.estimate.shape import KNOWN
from spinrun_cli.estimate.window import window
from spinrun_cli.estimate.work import Work

TWO_CORES = of_machine(Speeds(bfloat16=0.424 * TFLOPS, float32=0.196 * TFLOPS, copy=12 * GB, memory=25 * GB))
"""The machine of docs/benchmarks.md."""

H100 = of_card(CARDS["H100"])
"""One H100 a rank and one a rollout, an NFS server of 32 Gbit/s: taken from data sheets, not measured."""

DEMO = Work(
    shape=KNOWN["HuggingFaceTB/SmolLM2-135M-Instruct"],
    prompts=64,
    answers=8,
    prompt_tokens=44,
    answer_tokens=12.5,
    longest_prompt=112,
    longest_answer=16,
    steps=4,
    row_tokens=256,
    published_dtype="float32",
    rollout_dtype="float32",
    optimizer="rmsprop",
    shares_cores=True,
    sequences=64,
    batched_tokens=1024,
    cache_bytes=160 << 20,
)
SEVEN_B = Work(
    shape=KNOWN["Qwen/Qwen2.5-7B-Instruct"],
    prompts=1024,
    answers=8,
    prompt_tokens=150,
    answer_tokens=400,
    longest_prompt=1024,
    longest_answer=1024,
    row_tokens=8192,
    ranks=8,
    rollouts=8,
    sequences=H100.sequences,
    batched_tokens=H100.batched_tokens,
)
SEVENTY_B = replace(SEVEN_B, shape=KNOWN["meta-llama/Llama-3.1-70B-Instruct"], ranks=64, rollouts=64, tensor_parallel=4)


def limit_of_rollouts(work: Work, hardware: Hardware, *, share: float = 0.1) -> int:
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
    print("| run | publish | activate | generate | checkpoint | reference | train | window | outside generate and train |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = {"demo, two cores": (DEMO, TWO_CORES)}
    for count in (1, 8, 32):
        name = f"7B, {count} rank{'s' if count > 1 else ''}, {count} rollout{'s' if count > 1 else ''}"
        cases[name] = replace(SEVEN_B, ranks=count, rollouts=count), H100
    cases["70B, 64 ranks, 64 rollouts of 4 GPUs"] = SEVENTY_B, H100
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
    print(f"\n7B: activation stays below a tenth of a window up to {limit_of_rollouts(SEVEN_B, H100)} rollouts")


if __name__ == "__main__":
    main()
