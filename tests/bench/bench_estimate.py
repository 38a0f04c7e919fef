"""`make bench-estimate`: what `spinrun estimate` says of short runs, beside the same runs measured here.

python tests/bench/bench_estimate.py --model DIR [--repeats 2] [--only NAME] [--raw FILE] [--compare FILE ...]
                                      [--memory] [--write]

Prints the table of docs/scaling.md, and writes it there with --write; --compare takes what earlier calls measured (--raw) in
place of measuring. Of repeats the fastest window and the smallest peak count: whatever else the machine does only adds to them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import yaml

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

from bench.harness import say, write_table  # noqa: E402
from spinrun_api.documents import parse_run, read_documents  # noqa: E402
from spinrun_cli.estimate.hardware import Speeds, of_machine  # noqa: E402
from spinrun_cli.estimate.result import Estimate  # noqa: E402
from spinrun_cli.estimate.run import estimate  # noqa: E402
from spinrun_cli.estimate.shape import shape_of  # noqa: E402
from spinrun_cli.local.speeds import measure_speeds  # noqa: E402
from spinrun_protocol.model_limits import fitted, parse_config  # noqa: E402
from spinrun_worker.ledger import read_pairs  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"

Document = dict[str, Any]

STORY = "Tell a story in which {prompt}"


def runs(model: Path) -> dict[str, Document]:
    """Short runs by their names: with the demo's settings, and two in which something else fills memory and time."""
    (demo,) = read_documents(ROOT / "examples" / "demo.yaml")
    spec = demo["spec"]
    spec["model"]["source"] = str(model)
    spec["duration"] = {"windows": 2}
    spec["method"]["refUpdateFreq"] = 1
    spec["rollout"]["samplesPerPrompt"] = 4
    spec["trainer"]["computeDtype"] = "float32"
    del spec["data"]["evaluation"]
    rows = deepcopy(demo)
    rows["spec"]["model"]["dtype"] = "bfloat16"
    rows["spec"]["trainer"] |= {
        "optimizer": "adamw",
        "learningRate": 1e-6,
        "tokensPerMicroBatch": 1024,
        "computeDtype": "bfloat16",
    }
    long = deepcopy(demo)
    long["spec"]["data"]["prompts"]["template"] = STORY
    # A rule that tells answers apart by chance: what is measured is not what is learnt.
    long["spec"]["preference"] = {"rule": {"kind": "regex", "pattern": "e$|[aeiou]$", "truncated": "score"}}
    long["spec"]["rollout"] |= {"samplesPerPrompt": 2, "maxTokens": 48}
    long["spec"]["trainer"] |= {"tokensPerMicroBatch": 2048}
    return {
        "AdamW, bfloat16, rows of 1024": rows,
        "answers of 48 tokens, rows of 2048": long,
        "the demo's settings": demo,
    }


class Peaks:
    """The most main memory that the processes below one have held, by what they are."""

    KINDS: ClassVar[dict[str, str | None]] = {
        "spinrun_worker.trainer.launch": None,
        "spinrun_worker.trainer": "trainer",
        "spinrun_worker.vllm": "server",
        "VLLM::": "engine",
    }

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.bytes: dict[str, int] = {}

    def look(self) -> None:
        """Read /proc once."""
        shared = 0
        for pid in _below(self.parent):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            kind = next((kind for module, kind in self.KINDS.items() if any(part.startswith(module) for part in command)), None)
            peak = next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)
            if kind is not None:
                self.bytes[kind] = max(self.bytes.get(kind, 0), peak)
            if kind in ("server", "engine"):
                shared += _own_bytes(pid)
        self.bytes["rollout"] = max(self.bytes.get("rollout", 0), shared)


def _own_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others counted in parts: the parts of all processes add up to the whole."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def _below(parent: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [parent]
    for pid in found:
        found += children.get(pid, [])
    return found


def measure(document: Document, folder: Path) -> Document:
    """Run a document to its end: what its windows took, what its processes held and what it left on the disk."""
    run_file = folder / "run.yaml"
    folder.mkdir(parents=True)
    run_file.write_text(yaml.safe_dump(document))
    command = [str(Path(sys.executable).with_name("spinrun")), "local", str(run_file), "--output", str(folder / "run"), "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    peaks, ended = Peaks(child.pid), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            peaks.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output, _ = child.communicate(timeout=900)
    finally:
        ended.set()
        watcher.join()
    if child.returncode != 0:
        raise SystemExit(output.decode()[-3000:])
    ledger = folder / "run" / "ledger"
    lines = [json.loads(line) for line in (ledger / "metrics.jsonl").read_text().splitlines()]
    pairs = [pair for path in sorted(ledger.glob("windows/*/pairs.parquet")) for pair in read_pairs(path)]
    return {
        "run": document,
        "prompt_tokens": mean(len(pair.prompt) for pair in pairs),
        "speeds": asdict(measure_speeds()),
        "peaks": peaks.bytes,
        "windows": [line["values"] | {"time": line["time"]} for line in lines if line["event"] == "window"],
        "steps": [line["values"] | {"time": line["time"]} for line in lines if line["event"] == "step"],
        "disk": {path.name: _bytes(path) for path in ledger.iterdir() if path.is_dir()},
        "compute_dtype": json.loads((ledger / "run.json").read_text())["computeDtype"],
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def estimated(measured: Document, speeds: Speeds) -> Estimate:
    """What the estimate says of a run, told how long its prompts and answers were and how many made a pair."""
    run = parse_run(measured["run"], "bench")
    config = parse_config((Path(run.spec.model.source) / "config.json").read_text())
    assert config is not None
    window = measured["windows"][-1]
    prompts = run.spec.trainer.least_prompts_per_step * run.spec.method.steps_per_window
    given = {
        "promptTokens": measured["prompt_tokens"],
        "answerTokens": window["response_length/mean"],
        "pairsPerPrompt": window["pairs"] / prompts,
    }
    return estimate(fitted(run, config), shape_of(config), of_machine(speeds), given=given, auto_dtype=speeds.dtype)


def rows(measured: Document, best: Document, speeds: Speeds) -> list[tuple[str, float, float]]:
    """What, estimated and measured: bytes and seconds of a run's last window.

    Args:
        measured: The repeat whose last window was the fastest.
        best: The smallest peaks of all repeats.
        speeds: Of the machine.
    """
    said, window = estimated(measured, speeds), measured["windows"][-1]
    seconds = said.window
    total = window["time"] - measured["windows"][-2]["time"]
    return [
        ("trainer, GB", max(said.rank.total, said.loading.total) / 1e9, best["trainer"] / 1e9),
        ("rollout, GB", said.rollout.memory.total / 1e9, best["rollout"] / 1e9),
        ("publish, s", seconds.publish, window["timing/publish_seconds"]),
        ("activate, s", seconds.activate, window["timing/activate_seconds"]),
        # The checkpoint is written while the rollouts answer.
        ("generate and checkpoint, s", seconds.generate + seconds.checkpoint, _spent(window, "generate", "checkpoint")),
        ("reference, s", seconds.reference, window["timing/reference_seconds"]),
        ("train, s", seconds.train, window["timing/train_seconds"]),
        ("window, s", seconds.total, total),
    ]


def _spent(window: Document, *activities: str) -> float:
    return sum(window.get(f"timing/{activity}_seconds", 0.0) for activity in activities)


def table(raw: dict[str, list[Document]], *, only_memory: bool) -> str:
    """The table: a row for each thing, three columns for each run.

    Args:
        raw: What was measured.
        only_memory: Whether seconds are left out.
    """
    everything = [measured for repeats in raw.values() for measured in repeats]
    speeds = Speeds(**max((measured["speeds"] for measured in everything), key=lambda each: each["float32"] + each["bfloat16"]))
    names = list(raw)
    columns: list[list[tuple[str, float, float]]] = []
    for name in names:
        fastest = min(raw[name], key=lambda each: each["windows"][-1]["time"] - each["windows"][-2]["time"])
        peaks = {kind: min(each["peaks"][kind] for each in raw[name]) for kind in ("trainer", "rollout")}
        columns.append(rows(fastest, peaks, speeds))
    lines = [f"| | {' | '.join(f'{name} | measured | off' for name in names)} |", f"|---|{'---|' * 3 * len(names)}"]
    for row in list(zip(*columns, strict=True))[: 2 if only_memory else None]:
        cells = [f"{said:.2f} | {found:.2f} | {(said - found) / found:+.0%}" for _, said, found in row]
        lines.append(f"| {row[0][0]} | {' | '.join(cells)} |")
    if only_memory:
        return "\n".join(lines)
    return "\n".join(
        [
            *lines,
            "",
            f"{speeds.float32 / 1e9:.0f} GFLOP/s in float32, {speeds.bfloat16 / 1e9:.0f} in bfloat16, copies of "
            f"{speeds.copy / 1e9:.1f} GB/s; the best of {min(map(len, raw.values()))} runs each.",
        ]
    )


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", help="one run")
    parser.add_argument("--raw", type=Path, help="file for what was measured")
    parser.add_argument("--compare", type=Path, nargs="+", help="what was measured before")
    parser.add_argument("--memory", action="store_true", help="no seconds: the machine does other work")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    raw: dict[str, list[Document]] = {}
    for path in options.compare or ():
        for name, repeats in json.loads(path.read_text()).items():
            raw.setdefault(name, []).extend(repeats)
    if not options.compare:
        with tempfile.TemporaryDirectory() as scratch:
            for repeat in range(options.repeats):
                for number, (name, document) in enumerate(runs(options.model.resolve()).items()):
                    if options.only in (None, name):
                        say(f"{name}, repeat {repeat}")
                        raw.setdefault(name, []).append(measure(document, Path(scratch) / f"{number}-{repeat}"))
                        if options.raw:
                            options.raw.write_text(json.dumps(raw, indent=1))
    found = table(raw, only_memory=options.memory)
    print(found)
    if options.write:
        write_table(PAGE, found)


if __name__ == "__main__":
    main()
