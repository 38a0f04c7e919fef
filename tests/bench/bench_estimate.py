"""`make bench-estimate`: what `spinrun estimate` says of short runs, beside the same runs measured here.

python tests/bench/bench_estimate.py --model DIR [--repeats 2] [--only NAME] [--raw FILE] [--write]

Prints the table of docs/scaling.md, and writes it there with --write. Of repeats the fastest window and the smallest peak count:
whatever else the machine does only adds to them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

from bench.harness import say  # noqa: E402
from spinrun_cli.local.speeds import measure_speeds  # noqa: E402

Document = dict[str, Any]

STORY = "Tell a story in which {prompt}"


def runs(model: Path) -> dict[str, Document]:
    """The runs by their names: the demo, and two others in which what fills memory and time is another."""
    demo = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    spec = demo["spec"]
    spec["model"]["source"] = str(model)
    spec["duration"] = {"windows": 2}
    spec["method"]["refUpdateFreq"] = 2
    spec["trainer"]["computeDtype"] = "float32"
    del spec["data"]["evaluation"]
    rows = yaml.safe_load(yaml.safe_dump(demo))
    rows["spec"]["model"]["dtype"] = "bfloat16"
    rows["spec"]["trainer"] |= {"optimizer": "adamw", "learningRate": 1e-6, "tokensPerMicroBatch": 1024, "computeDtype": "bfloat16"}
    long = yaml.safe_load(yaml.safe_dump(demo))
    long["spec"]["data"]["prompts"]["template"] = STORY
    # A rule that tells answers apart by chance: what is measured is not what is learnt.
    long["spec"]["preference"] = {"rule": {"kind": "regex", "pattern": "e$|[aeiou]$", "truncated": "score"}}
    long["spec"]["rollout"] |= {"samplesPerPrompt": 4, "maxTokens": 96}
    long["spec"]["trainer"] |= {"tokensPerMicroBatch": 2048}
    return {"the demo": demo, "AdamW, bfloat16, rows of 1024": rows, "4 answers of 96 tokens, rows of 2048": long}


class Peaks:
    """The most main memory that the processes below one have held, by what they are."""

    KINDS = {
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
    return {
        "speeds": asdict(measure_speeds()),
        "peaks": peaks.bytes,
        "windows": [line["values"] | {"time": line["time"]} for line in lines if line["event"] == "window"],
        "steps": [line["values"] | {"time": line["time"]} for line in lines if line["event"] == "step"],
        "disk": {path.name: _bytes(path) for path in ledger.iterdir() if path.is_dir()},
        "compute_dtype": json.loads((ledger / "run.json").read_text())["computeDtype"],
        "log": [line for line in (folder / "run" / "logs" / "trainer.log").read_text().splitlines()][-400:],
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", help="one run")
    parser.add_argument("--raw", type=Path, help="file for what was measured")
    options = parser.parse_args()
    raw: dict[str, list[Document]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(options.repeats):
            for number, (name, document) in enumerate(runs(options.model.resolve()).items()):
                if options.only in (None, name):
                    say(f"{name}, repeat {repeat}")
                    raw.setdefault(name, []).append(measure(document, Path(scratch) / f"{number}-{repeat}"))
                    if options.raw:
                        options.raw.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
