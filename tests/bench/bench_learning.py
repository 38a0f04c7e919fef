"""What the methods learn: each trains SmolLM2-135M-Instruct on two tasks, addition and letters, with several seeds.

    make bench-learning                                             what is missing of all rows, tasks and seeds
    make bench-learning BENCH_ARGS="--task letters --seed 0 grpo"   a part: one row, task and seed
    make bench-learning BENCH_ARGS="--list"                         what there is, what is missing
    python tests/bench/bench_learning.py --write                    the page and the picture alone, of what is measured

Each run is written to docs/results.json as it ends, and one that is there is not run again (--again does). Its folder is then
deleted. Runs are in the order of the seeds, so that a part of the whole already has every row once. It fails where a run could
not be trained, or where one gained less than MARGIN.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from spinrun_worker.data.generators import GENERATORS
from spinrun_worker.ledger import Layout, read_metrics

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench import learning  # noqa: E402
from bench.harness import run_local, say, write_table  # noqa: E402
from bench.learning import Outcome, Results, draw, learned, markdown  # noqa: E402

ROOT = TESTS.parent
DEMO = ROOT / "examples" / "demo.yaml"
PAGE = ROOT / "docs" / "results.md"
RAW = ROOT / "docs" / "results.json"
PICTURE = ROOT / "docs" / "images" / "learning.png"

STEPS = 16
"""Of every run, however long its windows are."""
STEPS_PER_WINDOW = 4
PER_STEP = 16
"""Prompts of a step or, with refill, pairs."""
SEEDS = (0, 1, 2)
"""Seeds of the order of the prompts: each run draws other questions in other orders. The held-out ones are the same."""
RUN_SECONDS = 1800
TOKEN_BUDGETS = (5_000, 10_000, 20_000)
TIME_BUDGETS = (100, 200, 300)

Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is learned."""

    source: str
    config: str
    rule: Json
    solution: str
    """How the model puts an answer that is right, with the columns of a row: the true answers that SPIN is given. From answers
    alone it would learn to leave out the words around them, without which this model does worse."""
    held_out: int = 90


@dataclass(frozen=True)
class Row:
    """A method, or one of its settings. All else, from the learning rate to the number of prompts, is the demo's."""

    method: Json
    steps_per_window: int = STEPS_PER_WINDOW
    refill: bool = False
    samples: int | None = None


TASKS: Mapping[str, Task] = {
    "addition": Task("arithmetic", "addition-15", {"kind": "lastNumber"}, "{a} + {b} = {answer}"),
    "letters": Task(
        "letters",
        "longest-2",
        {"kind": "regex", "pattern": r"(?i)\b{answer}\W*$", "truncated": "zero"},
        "{answer}",
    ),
}

DPO: Json = {"loss": "sigmoid"}
SPIN: Json = {"name": "spin", "loss": "sigmoid"}
SPPO: Json = {"name": "sppo", "loss": "sppo", "sppo": {"eta": 10.0}}
ADVANTAGE: Json = {"name": "sppo", "loss": "sppoAdvantage", "sppoAdvantage": {"advantage": "prompt", "eta": 10.0}}
GRPO: Json = {"name": "grpo", "loss": "grpo"}
SFT: Json = {"sftWeight": 0.2}

ROWS: Mapping[str, Row] = {
    "onlineDPO": Row(DPO),
    "spin": Row(SPIN, samples=1),
    "sppo": Row(SPPO),
    "sppoAdvantage": Row(ADVANTAGE),
    "grpo": Row(GRPO),
    "onlineDPO, windows of 1": Row(DPO, steps_per_window=1),
    "onlineDPO, windows of 16": Row(DPO, steps_per_window=16),
    "onlineDPO, refill": Row(DPO, refill=True),
    "onlineDPO, sft": Row(DPO | SFT),
    "onlineDPO, refill, sft": Row(DPO | SFT, refill=True),
    "grpo, windows of 1": Row(GRPO, steps_per_window=1),
    "sppo, refill": Row(SPPO, refill=True),
    "sppo, sft": Row(SPPO | SFT),
    "spin, sft": Row(SPIN | SFT, samples=1),
    "onlineDPO, cringe": Row({"loss": "cringe"}),
}

GROUPS: Mapping[str, Sequence[str]] = {
    "methods": ("onlineDPO", "spin", "sppo", "sppoAdvantage", "grpo", "onlineDPO, cringe"),
    "steps in a window": (
        "onlineDPO",
        "onlineDPO, windows of 1",
        "onlineDPO, windows of 16",
        "grpo",
        "grpo, windows of 1",
    ),
    "refill and sftWeight 0.2": (
        "onlineDPO",
        "onlineDPO, refill",
        "onlineDPO, sft",
        "onlineDPO, refill, sft",
        "sppo, refill",
        "sppo, sft",
        "spin, sft",
    ),
}
"""Columns of the picture."""


@dataclass(frozen=True)
class Part:
    """One run."""

    row: str
    task: str
    seed: int

    @property
    def slug(self) -> str:
        """A name for files."""
        return f"{self.task}-{self.row.lower().replace(', ', '-').replace(' ', '-')}-{self.seed}"


def document(part: Part, model: Path, folder: Path) -> Json:
    """The run file of a part. folder: for what it needs beside the model."""
    row, task = ROWS[part.row], TASKS[part.task]
    whole = yaml.safe_load(DEMO.read_text())
    whole["metadata"]["name"] = part.slug
    spec = whole["spec"]
    spec["model"]["source"] = str(model)
    source = {"source": task.source, "config": task.config}
    spec["data"]["prompts"] = source | {"shuffleSeed": part.seed}
    spec["data"]["evaluation"] = source | {
        "split": "test",
        "limit": task.held_out,
        "everyWindows": max(1, STEPS_PER_WINDOW // row.steps_per_window),
    }
    spec["preference"] = {"rule": task.rule}
    spec["method"] |= row.method | {"refUpdateFreq": row.steps_per_window}
    if row.samples is not None:
        spec["rollout"]["samplesPerPrompt"] = row.samples
    if row.method.get("name") == "spin":
        spec["preference"] = {"groundTruth": {"rule": task.rule}}
        spec["data"]["prompts"] = {
            "source": str(solutions(task, folder / f"{part.task}.jsonl")),
            "answerColumn": "answer",
            "shuffleSeed": part.seed,
        }
    if row.refill:
        del spec["trainer"]["promptsPerStep"]
        spec["trainer"]["pairsPerStep"] = PER_STEP
    else:
        spec["trainer"]["promptsPerStep"] = PER_STEP
    spec["trainer"]["checkpointEverySteps"] = 1_000_000  # nobody resumes from these
    spec["duration"] = {"windows": STEPS // row.steps_per_window}
    return whole


def solutions(task: Task, path: Path) -> Path:
    """The questions that are trained on with true answers in the words of the model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = GENERATORS[task.source](task.config, "train", block="bench-learning")
    solved = [{"prompt": row["prompt"], "answer": task.solution.format(**row)} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in solved))
    return path.resolve()


def parts(rows: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]) -> Iterator[Part]:
    """What is to be run, each row of each task with the first seed before any with the next."""
    for seed, task, row in product(seeds, tasks, rows):
        yield Part(row, task, seed)


def missing(wanted: Iterator[Part], results: Results) -> list[Part]:
    """Those of which there is no outcome."""
    return [part for part in wanted if part.seed not in results.get(part.task, {}).get(part.row, {})]


def train(part: Part, model: Path, output: Path, *, keep: bool) -> Outcome:
    """One run from its start to its end.

    Args:
        part: Which.
        model: Folder of the model.
        output: Folder of the runs; that of this one is deleted.
        keep: Leave the folder, without the weights.

    Raises:
        SystemExit: The run failed.
    """
    folder = output / part.slug
    shutil.rmtree(folder, ignore_errors=True)  # of a bench that was cut off
    started = time.time()
    run_local(document(part, model, output), folder, seconds=RUN_SECONDS)
    found = learning.outcome(read_metrics(Layout(folder / "ledger").metrics), started)
    if found is None:
        raise SystemExit(f"{folder}: nothing was evaluated")
    shutil.rmtree(folder / "ledger" / "weights" if keep else folder)
    return found


def main() -> int:
    """Train what is missing, show and, if asked to, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of: {'; '.join(ROWS)}. All when none is given")
    parser.add_argument("--task", action="append", choices=TASKS, help="may be repeated; all when none is given")
    parser.add_argument("--seed", action="append", type=int, choices=SEEDS, help="may be repeated; all when none is given")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct; none: run nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "learning", help="folder of the runs")
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders, without their weights")
    parser.add_argument("--again", action="store_true", help="run also what has been measured")
    parser.add_argument("--list", action="store_true", help="run nothing: say what is missing")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and {PICTURE.name} in docs/ too")
    options = parser.parse_args()
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {'; '.join(ROWS)}")
    results = learning.load(RAW)
    wanted = list(parts(options.rows or list(ROWS), options.task or list(TASKS), options.seed or SEEDS))
    left = wanted if options.again else missing(iter(wanted), results)
    failed: list[str] = []
    if options.list or options.model is None:
        say(f"{len(wanted) - len(left)} of {len(wanted)} runs are measured")
        for part in left if options.list else ():
            say(f"missing: {part.task}, {part.row}, seed {part.seed}")
    else:
        for number, part in enumerate(left, start=1):
            say(f"{number} of {len(left)}: {part.task}, {part.row}, seed {part.seed}")
            try:
                found = train(part, options.model.resolve(), options.output, keep=options.keep)
            except (SystemExit, subprocess.TimeoutExpired) as error:
                failed.append(part.slug)
                say(f"failed: {error}")
                continue
            results.setdefault(part.task, {}).setdefault(part.row, {})[part.seed] = found
            learning.store(RAW, results)
            say(f"{found.accuracy[0]:.3f} to {found.accuracy[-1]:.3f}, {found.tokens[-1]} tokens, {found.seconds[-1]:.0f} s")
    print(markdown(results, list(ROWS), tokens=TOKEN_BUDGETS, seconds=TIME_BUDGETS))
    if options.write:
        write_table(PAGE, markdown(results, list(ROWS), tokens=TOKEN_BUDGETS, seconds=TIME_BUDGETS))
        draw(results, GROUPS, PICTURE)
    short = [
        part.slug
        for part in wanted
        if part.seed in (found := results.get(part.task, {}).get(part.row, {})) and not learned([found[part.seed]])
    ]
    for slug in failed:
        say(f"could not be trained: {slug}")
    for slug in short:
        say(f"gained less than {learning.MARGIN}: {slug}")
    return 1 if failed or short else 0


if __name__ == "__main__":
    sys.exit(main())
