"""The ranks under the real torchrun instead of our launcher; docs/decisions/003 says why there are two."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from spinrun_protocol.environment import ROLLOUTS, TERMINATION_LOG, TOKEN_FILE
from spinrun_worker.ledger import Ledger
from support.trainer_process import UID, Attempts


def test_two_ranks_complete_a_run_under_torchrun(attempts: Attempts, tmp_path: Path) -> None:
    """With an older reference and replay: where the policy is the reference, tests/e2e/test_two_trainer_pods.py has two ranks."""
    method, steps = {"refUpdateFreq": 0, "rolloutUpdateFreq": 2, "replayWindows": 1}, 6
    run_file, ledger = tmp_path / "run.yaml", tmp_path / "ledger"
    run_file.write_text(yaml.safe_dump(attempts.document | {"spec": attempts.document["spec"] | {"method": method}}))
    environment = os.environ | {
        ROLLOUTS: attempts.agent,
        TOKEN_FILE: str(attempts.token_file),
        TERMINATION_LOG: str(tmp_path / "termination"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    command += ["spinrun_worker.trainer", "--run", str(run_file), "--ledger", str(ledger), "--attempt", "1"]
    command += ["--host", "127.0.0.1", "--port", "0"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    weights = Ledger(ledger, UID).verify("weights", 2)
    assert weights.step == steps
    assert sum(entry.path.endswith(".safetensors") for entry in weights.files) == 2
