"""`make bench-time`: seconds from the start of the process to a held-out accuracy of 0.85 on the demo's task, SpinRun beside TRL.

    make bench-time                                                what is missing of the search, then of the measurement
    make bench-time BENCH_ARGS="--search grpo"                     a part: the settings of one contender
    make bench-time BENCH_ARGS="--measure spinrun --seed 1"        a part: the best setting of one contender, one seed
    python tests/bench/time_to_accuracy.py --write                 the table alone, of what is measured

The search tries each contender's settings with seed 0 and keeps the one that was fastest or, where none reached the target, came
nearest. The measurement runs that one with three seeds, which are taken in turn, so that a machine whose speed drifts is as slow
for one contender as for the others. Every run is written to docs/time-to-accuracy.json as it ends, and is not run again.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from spinrun_worker.ledger import Layout, read_metrics

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench.harness import say, write_table  # noqa: E402

ROOT = TESTS.parent
DEMO = ROOT / "examples" / "demo.yaml"
PAGE = ROOT / "docs" / "benchmarks.md"
RAW = ROOT / "docs" / "time-to-accuracy.json"
TABLE = "time to accuracy"

TARGET = 0.85
SEARCH_SECONDS = 300
MEASURE_SECONDS = 600
SEEDS = (0, 1, 2)
GRACE_SECONDS = 120
"""What a process gets beyond its limit: it looks at the clock between steps."""
POLL_SECONDS = 0.2

Json = dict[str, Any]
Phase = Literal["search", "measure"]


@dataclass(frozen=True)
class Attempt:
    """One run of a contender."""

    seconds: float | None
    """To the target; None where it was not reached."""
    limit: float
    accuracy: list[float]
    """Of each evaluation."""
    at: list[float]
    """Seconds since the start of the process at each; TRL's evaluations are taken out."""

    @property
    def best(self) -> float:
        """Highest accuracy that was reached."""
        return max(self.accuracy, default=0.0)


@dataclass(frozen=True)
class Contender:
    """A trainer and the settings that are tried."""

    name: str
    settings: Mapping[str, Json]
    """By what the table calls them."""
    options: Sequence[str] = field(default_factory=tuple)


REFILL: Json = {"trainer.promptsPerStep": None, "trainer.pairsPerStep": 16}
FROM_ROLLOUTS: Json = {"method.referenceLogprobs": "rollouts"}


def _of_trl(words: str, *settings: tuple[int, float, bool]) -> dict[str, Json]:
    """Settings of a trainer of TRL by their names. words: those for the number of prompts in a step."""
    return {
        f"{words.format(prompts)}, {rate:g}{', autocast' if autocast else ''}": {
            "prompts": prompts,
            "rate": rate,
            "autocast": autocast,
        }
        for prompts, rate, autocast in settings
    }


CONTENDERS: Mapping[str, Contender] = {
    "spinrun": Contender(
        "SpinRun",
        {
            "demo": {},
            "demo, learning rate 4e-6": {"trainer.learningRate": 4e-6},
            "demo, reference from rollouts": FROM_ROLLOUTS,
            "demo, reference from rollouts, refill": FROM_ROLLOUTS | REFILL,
            "demo, reference from rollouts, windows of 2": FROM_ROLLOUTS | {"method.refUpdateFreq": 2},
            "AdamW 1e-5, reference from rollouts": FROM_ROLLOUTS | {"trainer.optimizer": "adamw", "trainer.learningRate": 1e-5},
        },
    ),
    "onlineDPO": Contender(
        "TRL OnlineDPOTrainer",
        _of_trl(
            "{} prompts",
            (16, 5e-6, False),
            (16, 1e-5, False),
            (16, 2e-5, False),
            (32, 1e-5, False),
            (64, 1e-5, False),
            (16, 1e-5, True),
        ),
    ),
    "grpo": Contender(
        "TRL GRPOTrainer",
        _of_trl(
            "{} prompts of 8",
            (4, 5e-6, False),
            (4, 1e-5, False),
            (8, 1e-5, False),
            (16, 1e-5, False),
            (8, 2e-5, False),
            (8, 1e-5, True),
        ),
    ),
}


@dataclass(frozen=True)
class Part:
    """One run to be made."""

    phase: Phase
    contender: str
    setting: str
    seed: int

    @property
    def key(self) -> str:
        """By which it is kept."""
        return f"{self.phase} | {self.contender} | {self.setting} | seed {self.seed}"


Results = dict[str, Attempt]


def load(path: Path) -> Results:
    """What a file holds; nothing if it does not exist."""
    return {key: Attempt(**values) for key, values in json.loads(path.read_text()).items()} if path.exists() else {}


def store(path: Path, results: Results) -> None:
    """Write the file as a whole: it is complete at any time."""
    temporary = path.with_suffix(".new")
    rows = ",\n".join(f" {json.dumps(key)}: {json.dumps(asdict(attempt))}" for key, attempt in results.items())
    temporary.write_text(f"{{\n{rows}\n}}\n")
    temporary.replace(path)


def best_setting(results: Results, contender: str) -> str | None:
    """The setting that reached the target first or, where none did, came nearest; None where none has been tried."""
    tried = {
        setting: results[key]
        for setting in CONTENDERS[contender].settings
        if (key := Part("search", contender, setting, SEEDS[0]).key) in results
    }
    return min(tried, key=lambda name: (tried[name].seconds or float("inf"), -tried[name].best)) if tried else None


def searches(contenders: Sequence[str]) -> list[Part]:
    """All settings, the contenders in turn."""
    longest = max(len(CONTENDERS[name].settings) for name in contenders)
    lists = {name: list(CONTENDERS[name].settings) for name in contenders}
    return [
        Part("search", name, lists[name][index], SEEDS[0])
        for index in range(longest)
        for name in contenders
        if index < len(lists[name])
    ]


def measurements(contenders: Sequence[str], seeds: Sequence[int], results: Results) -> Iterator[Part]:
    """The best setting of each contender with each seed, the contenders in turn; those without a search are left out."""
    for seed in seeds:
        for name in contenders:
            setting = best_setting(results, name)
            if setting is None:
                say(f"{name}: search first")
            else:
                yield Part("measure", name, setting, seed)


def document(setting: Json, seed: int, model: Path) -> Json:
    """The demo with other fields, and more windows than it will need."""
    whole = yaml.safe_load(DEMO.read_text())
    spec = whole["spec"]
    spec["model"]["source"] = str(model)
    spec["data"]["prompts"]["shuffleSeed"] = seed
    spec["trainer"]["checkpointEverySteps"] = 1_000_000  # TRL writes none either
    spec["duration"] = {"windows": 200}
    for name, value in setting.items():
        block, _, key = name.partition(".")
        spec[block].pop(key, None)
        if value is not None:
            spec[block][key] = value
    return whole


def run_spinrun(setting: Json, seed: int, model: Path, output: Path, limit: float) -> Attempt:
    """`spinrun local` until an evaluation shows the target."""
    folder = output / "run"
    shutil.rmtree(folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    run_file = output / "run.yaml"
    run_file.write_text(yaml.safe_dump(document(setting, seed, model)))
    started = time.time()
    command = [Path(sys.executable).with_name("spinrun"), "local", run_file, "--output", folder, "--quiet"]
    process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, start_new_session=True)
    metrics = Layout(folder / "ledger").metrics
    found: list[tuple[float, float]] = []
    try:
        while process.poll() is None and time.time() - started < limit and not reached(found):
            time.sleep(POLL_SECONDS)
            if metrics.exists():
                lines = [line for line in read_metrics(metrics) if line.event == "evaluation"]
                found = [(line.time - started, line.values["accuracy"]) for line in lines]
    finally:
        failed = process.poll()
        if failed is None:
            process.send_signal(signal.SIGINT)  # the first saves a checkpoint, the second does not wait for it
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            process.wait(GRACE_SECONDS)
    if failed:
        raise SystemExit(f"spinrun local: exit code {failed}; see {folder}")
    shutil.rmtree(folder)
    return attempt(found, limit)


def run_trl(name: str, setting: Json, seed: int, model: Path, limit: float) -> Attempt:
    """One of TRL's trainers until an evaluation shows the target."""
    environment = os.environ | {"PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-m", "bench.accuracy_trl", name, "--model", str(model)]
    command += ["--learning-rate", str(setting["rate"]), "--prompts", str(setting["prompts"]), "--seed", str(seed)]
    command += ["--started", str(time.time()), "--seconds", str(limit), "--target", str(TARGET)]
    command += ["--autocast"] if setting["autocast"] else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit * 2 + GRACE_SECONDS)
    if done.returncode != 0:
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    return attempt([(line["seconds"], line["accuracy"]) for line in lines], limit)


def reached(evaluations: Sequence[tuple[float, float]]) -> bool:
    """Whether one of them shows the target."""
    return any(accuracy >= TARGET for _, accuracy in evaluations)


def attempt(evaluations: Sequence[tuple[float, float]], limit: float) -> Attempt:
    """What the evaluations of a run say. evaluations: seconds and accuracy of each."""
    first = next((seconds for seconds, accuracy in evaluations if accuracy >= TARGET and seconds <= limit), None)
    return Attempt(
        seconds=None if first is None else round(first, 1),
        limit=limit,
        accuracy=[round(accuracy, 4) for _, accuracy in evaluations],
        at=[round(seconds, 1) for seconds, _ in evaluations],
    )


def markdown(results: Results) -> str:
    """The table for the page: the search's settings in small, and what was measured with the best ones."""
    lines = [
        "| trainer | best settings | seconds by seed | median | against SpinRun |",
        "|---|---|---|---|---|",
    ]
    medians: dict[str, float] = {}
    for name, contender in CONTENDERS.items():
        setting = best_setting(results, name)
        if setting is None:
            continue
        parts = [results.get(Part("measure", name, setting, seed).key) for seed in SEEDS]
        measured = [each for each in parts if each is not None]
        if not measured:
            continue
        shown = ", ".join(_shown(each) for each in measured)
        if all(each.seconds is not None for each in measured):
            medians[name] = statistics.median(each.seconds or 0.0 for each in measured)
        ratio = f"{medians['spinrun'] / medians[name]:.2f}" if {"spinrun", name} <= medians.keys() and name != "spinrun" else ""
        median = f"{medians[name]:.0f}" if name in medians else ""
        lines.append(f"| {contender.name} | {setting} | {shown} | {median} | {ratio} |")
    lines += ["", "Tried with seed 0, seconds to the target or the best accuracy within the limit:", ""]
    for name, contender in CONTENDERS.items():
        tried = [
            f"{setting}: {_shown(results[key])}"
            for setting in contender.settings
            if (key := Part("search", name, setting, SEEDS[0]).key) in results
        ]
        if tried:
            lines.append(f"- {contender.name}: {'; '.join(tried)}")
    return "\n".join(lines)


def _shown(one: Attempt) -> str:
    return f"{one.seconds:.0f}" if one.seconds is not None else f"not in {one.limit:.0f} ({one.best:.2f})"


def run(part: Part, model: Path, output: Path, limit: float) -> Attempt:
    """One part."""
    setting = CONTENDERS[part.contender].settings[part.setting]
    if part.contender == "spinrun":
        return run_spinrun(setting, part.seed, model, output, limit)
    return run_trl(part.contender, setting, part.seed, model, limit)


def main() -> int:
    """Run what is missing, show and, if asked to, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="*", metavar="CONTENDER", help=f"of {', '.join(CONTENDERS)}; all when none is given")
    parser.add_argument("--search", action="store_true", help="the search alone")
    parser.add_argument("--measure", action="store_true", help="the measurement alone")
    parser.add_argument("--seed", action="append", type=int, choices=SEEDS, help="of the measurement; all when none is given")
    parser.add_argument("--seconds", type=float, help=f"limit of a run; else {SEARCH_SECONDS}, and {MEASURE_SECONDS} to measure")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct; none: run nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "time", help="folder of SpinRun's runs")
    parser.add_argument("--raw", type=Path, default=RAW, help="file of the results")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name} too")
    options = parser.parse_args()
    if unknown := set(options.contenders) - CONTENDERS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(CONTENDERS)}")
    names = options.contenders or list(CONTENDERS)
    results = load(options.raw)
    failed = False

    def run_all(parts: Sequence[Part], limit: float) -> None:
        nonlocal failed
        for part in parts:
            if part.key in results:
                continue
            say(part.key)
            try:
                results[part.key] = run(part, options.model.resolve(), options.output, limit)
            except (SystemExit, subprocess.TimeoutExpired) as error:
                failed = True
                say(f"failed: {error}")
                continue
            store(options.raw, results)
            say(_shown(results[part.key]))

    if options.model is not None:
        both = options.search == options.measure
        if both or options.search:
            run_all(searches(names), options.seconds or SEARCH_SECONDS)
        if both or options.measure:
            run_all(list(measurements(names, options.seed or SEEDS, results)), options.seconds or MEASURE_SECONDS)
    print(markdown(results))
    if options.write:
        write_table(PAGE, markdown(results), TABLE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
