"""A run that another version of SpinRun began: its ledger and its document are those that it wrote."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from integration.trainer.conftest import TOKEN
from integration.trainer.test_overlap import serving
from spinrun_protocol.ledger import MetricsLine
from spinrun_worker.ledger import Ledger, read_metrics, verify_tree
from support.models import smallest_llama
from support.scripted_agent import ScriptedAgent, random_digits
from support.trainer_process import UID, Attempts

BEFORE = Path(__file__).parent / "begun_before"


def steps(metrics: Path) -> list[MetricsLine]:
    return [line for line in read_metrics(metrics) if line.event == "step"]


def test_a_run_begun_by_the_version_before_continues_to_the_same_end(attempts: Attempts, tmp_path: Path) -> None:
    root = Path(shutil.copytree(BEFORE / "ledger", tmp_path / "ledger"))
    document = yaml.safe_load((BEFORE / "run.yaml").read_text())
    assert "ipoAverage" in document["spec"]["method"], "in the shape of then"
    document["spec"]["model"]["source"] = str(smallest_llama(tmp_path / "model"))

    with serving(ScriptedAgent(lambda _, prompt, index: random_digits("", prompt, index), TOKEN)) as url:
        assert replace(attempts, agent=url, document=document).run(root, attempt=2) == 0, attempts.log(2).read_text()

    assert "resuming from the checkpoint at step 3" in attempts.log(2).read_text()
    ledger = Ledger(root, UID)
    assert {finding.state for finding in verify_tree(root)} == {"committed"}
    assert [ledger.verify("window", number).attempt for number in range(3)] == [1, 1, 2]
    want, got = steps(BEFORE / "metrics.jsonl"), steps(ledger.layout.metrics)
    assert [line.step for line in got[-3:]] == [4, 5, 6]
    # Another processor rounds in another way.
    for name in ("loss", "logps/chosen", "rewards/margins"):
        assert [line.values[name] for line in got[-3:]] == pytest.approx(
            [line.values[name] for line in want[-3:]], rel=1e-3, abs=1e-3
        )
    end, wanted_end = load_file(ledger.layout.weights(3) / "model.safetensors"), load_file(BEFORE / "end.safetensors")
    assert end.keys() == wanted_end.keys()
    for name, tensor in wanted_end.items():
        torch.testing.assert_close(end[name], tensor, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
