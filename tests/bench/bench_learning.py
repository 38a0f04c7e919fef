"""What the methods learn: each trains SmolLM2-135M-Instruct to add, as the demo does, with several seeds.

    make bench-learning                                    all of them: an hour and a half on two cores
    python tests/bench/bench_learning.py --model DIR sppo  one, with every seed
    python tests/bench/bench_learning.py --write           the page alone, of what runs/learning holds

A run that is in the folder and complete is not run again. It fails where a run's last version is not better than its first by
MARGIN.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from spinrun_cli.show.charts import LIGHT, SETTINGS
from spinrun_worker.data import arithmetic
from spinrun_worker.ledger import Layout, read_metrics

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench.harness import run_local, say, write_table  # noqa: E402

ROOT = TESTS.parent
DEMO = ROOT / "examples" / "demo.yaml"
PAGE = ROOT / "docs" / "results.md"
RAW = ROOT / "docs" / "results.json"
PICTURE = ROOT / "docs" / "images" / "learning.png"

CONFIG = "addition-15"
WINDOWS = 4
SEEDS = (0, 1, 2)
"""Seeds of the order of the prompts: each run draws other questions in other orders. The held-out ones are the same."""
MARGIN = 0.1
"""What the last version must have gained on version 0: more than chance gives 90 answers."""
RUN_SECONDS = 3600

Json = dict[str, Any]
Accuracies = dict[str, dict[int, list[float]]]
"""By method and seed, the held-out accuracy of each version."""

GROUND_TRUTH: Json = {"groundTruth": {"rule": {"kind": "lastNumber"}}}
METHODS: Mapping[str, Json] = {
    "onlineDPO": {"method": {"loss": "sigmoid"}},
    "onlineDPO, cringe": {"method": {"loss": "cringe"}},
    "spin": {"method": {"name": "spin", "loss": "sigmoid"}, "preference": GROUND_TRUTH, "rollout": {"samplesPerPrompt": 1}},
    "sppo": {"method": {"name": "sppo", "loss": "sppo", "sppo": {"eta": 10.0}}},
    "sppo, advantage": {
        "method": {"name": "sppo", "loss": "sppoAdvantage", "sppoAdvantage": {"advantage": "prompt", "eta": 10.0}}
    },
}
"""What each has instead of the demo's fields; all else, from the learning rate to the number of prompts, is the demo's."""


def solutions(folder: Path) -> Path:
    """The demo's questions with sums as true answers, such as `7 + 12 = 19`: as the model puts it where it is right. From bare
    numbers SPIN would learn to leave the sum out, without which this model adds worse."""
    path = folder / "solutions.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows = arithmetic.questions(CONFIG, "train", block="bench-learning")
    solved = [{"prompt": row["prompt"], "answer": f"{row['a']} + {row['b']} = {row['answer']}"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in solved))
    return path.resolve()


def document(method: str, seed: int, model: Path, folder: Path) -> Json:
    """The run of a method. folder: for what it needs beside the model."""
    whole = yaml.safe_load(DEMO.read_text())
    whole["metadata"]["name"] = slug(method)
    spec = whole["spec"]
    spec["model"]["source"] = str(model)
    if method == "spin":
        spec["data"]["prompts"] = {"source": str(solutions(folder)), "answerColumn": "answer"}
    spec["data"]["prompts"]["shuffleSeed"] = seed
    spec["duration"] = {"windows": WINDOWS}
    spec["trainer"]["checkpointEverySteps"] = 1_000_000  # nobody resumes from these
    for field, changes in METHODS[method].items():
        spec[field] = changes if field == "preference" else spec[field] | changes
    return whole


def slug(method: str) -> str:
    """A name for files."""
    return method.lower().replace(", ", "-")


def train(method: str, seed: int, model: Path, folder: Path) -> None:
    """One run to its end, unless it is there."""
    if len(accuracies(folder)) == WINDOWS + 1:
        return
    say(f"{method}, seed {seed}")
    run_local(document(method, seed, model, folder.parent), folder, "--again", seconds=RUN_SECONDS)
    # Gigabytes a run; the figures are what is wanted.
    shutil.rmtree(folder / "ledger" / "weights")


def accuracies(folder: Path) -> list[float]:
    """Held-out accuracy of a run's versions; none where there is no run."""
    metrics = Layout(folder / "ledger").metrics
    if not metrics.exists():
        return []
    by_version = {line.version: line.values["accuracy"] for line in read_metrics(metrics) if line.event == "evaluation"}
    return [by_version[version] for version in sorted(by_version)]


def learned(values: Sequence[float]) -> bool:
    """Whether a run's last version is better than its first."""
    return values[-1] >= values[0] + MARGIN


def markdown(results: Accuracies) -> str:
    """The table for the page: mean over seeds by version, and the last version of each seed."""
    versions = " | ".join(f"version {version}" for version in range(WINDOWS + 1))
    lines = [
        f"| method | {versions} | last version by seed | best by seed | |",
        f"|---|{'---|' * (WINDOWS + 1)}---|---|---|",
    ]
    for method, by_seed in results.items():
        means = [statistics.mean(values) for values in zip(*by_seed.values(), strict=True)]
        last = ", ".join(f"{values[-1]:.3f}" for values in by_seed.values())
        best = ", ".join(f"{max(values):.3f}" for values in by_seed.values())
        mark = "learned" if all(map(learned, by_seed.values())) else "did not learn"
        lines.append(f"| {method} | {' | '.join(f'{mean:.3f}' for mean in means)} | {last} | {best} | {mark} |")
    return "\n".join(lines)


def draw(results: Accuracies) -> None:
    """A chart for each method: its seeds, and their mean."""
    with mpl.rc_context({**SETTINGS, "svg.fonttype": "path"}):
        figure = Figure(figsize=(2.6 * len(results), 2.7), layout="constrained", facecolor=LIGHT.surface)
        charts = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, (method, by_seed), colour in zip(charts, results.items(), LIGHT.series, strict=False):
            for values in by_seed.values():
                axes.plot(values, color=colour, alpha=0.4, linewidth=1)
            means = [statistics.mean(values) for values in zip(*by_seed.values(), strict=True)]
            axes.plot(means, color=colour, linewidth=2.2, marker="o", markersize=4)
            axes.set_title(method, fontsize=10, color=LIGHT.text)
            axes.set_xlabel("version", color=LIGHT.muted)
            axes.grid(axis="y", color=LIGHT.grid)
            axes.set_axisbelow(True)
            axes.tick_params(colors=LIGHT.muted, length=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        charts[0].set_ylim(0, 1.02)
        figure.savefig(PICTURE, dpi=90, metadata={"Software": None})


def write(results: Accuracies) -> None:
    """Put the results in docs/."""
    RAW.write_text(json.dumps(results, indent=1) + "\n")
    draw(results)
    write_table(PAGE, markdown(results))


def main() -> int:
    """Train, show and, if asked to, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"one of {'; '.join(METHODS)}; all when none is given")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct; none: run nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "learning", help="folder of the runs")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}, {RAW.name} and {PICTURE.name} in docs/")
    options = parser.parse_args()
    if unknown := set(options.methods) - METHODS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {'; '.join(METHODS)}")
    folders = {
        (method, seed): options.output / f"{slug(method)}-{seed}" for seed in SEEDS for method in options.methods or METHODS
    }
    if options.model is not None:
        for (method, seed), folder in folders.items():
            train(method, seed, options.model.resolve(), folder)
            say(f"{method}, seed {seed}: {' '.join(f'{value:.3f}' for value in accuracies(folder))}")
    results: Accuracies = {}
    for (method, seed), folder in folders.items():
        if values := accuracies(folder):
            results.setdefault(method, {})[seed] = values
    print(markdown(results))
    if options.write:
        write(results)
    return 0 if all(learned(values) for by_seed in results.values() for values in by_seed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
