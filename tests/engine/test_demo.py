"""The demo in its short form: one small window of the real model through the real command."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo.yaml"
SHORT = {
    "spec.duration.windows": "1",
    "spec.method.refUpdateFreq": "2",
    "spec.trainer.promptsPerStep": "4",
    "spec.rollout.samplesPerPrompt": "4",
    "spec.data.evaluation.limit": "12",
}


def spinrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spinrun_cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1000)


def test_the_demo_trains_a_real_model_for_a_window(tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "run"
    prepared = spinrun("model", "smollm2", "--output", str(model))
    assert prepared.returncode == 0, prepared.stderr

    overrides = [f"--set={path}={value}" for path, value in {**SHORT, "spec.model.source": str(model)}.items()]
    result = spinrun("local", str(EXAMPLE), "--output", str(folder), *overrides)
    assert result.returncode == 0, result.stdout + result.stderr

    words = json.loads((folder / "last-words.json").read_text())
    assert (words["result"], words["step"], words["version"]) == ("Complete", 2, 1)
    assert 0 <= words["initialAccuracy"] <= 1
    steps = [json.loads(line) for line in (folder / "ledger" / "metrics.jsonl").read_text().splitlines()]
    first = next(line["values"] for line in steps if line["event"] == "step")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert "samples" in (folder / "report.html").read_text()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    verified = spinrun("ledger", "verify", str(folder / "ledger"))
    assert verified.returncode == 0, verified.stdout
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(process.info["cmdline"] or [])]
