"""The demo in pods: two rollouts and a trainer of two ranks make SmolLM2 better at arithmetic."""

import os
import re
from pathlib import Path

import pytest

from e2e.conftest import ROOT
from e2e.runs import ACCESS_MODE, ANSWERING, Runs, tiny_run, with_models
from spinrun_protocol.commands import AGENT_PORT, TRAINER_PORT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

MODEL = Path(os.environ.get("MODEL", ROOT / ".cache/models/smollm2-135m-instruct"))


def test_a_run_learns_completes_and_leaves_its_ledger(runs: Runs, tmp_path: Path) -> None:
    runs.kubectl("cp", str(MODEL), "shell:/shared/models/smollm2")
    run = tiny_run(
        "happy",
        model={"source": "/models/smollm2", "dtype": "float32"},
        data={
            "prompts": {"source": "arithmetic", "config": "addition-15"},
            "evaluation": {"source": "arithmetic", "config": "addition-15", "split": "test"},
            "maxPromptTokens": 112,
        },
        preference={"rule": {"kind": "lastNumber"}},
        rollout={
            "replicas": 2,
            "maxTokens": 16,
            "engineArgs": {"max-num-seqs": 128, "kv-cache-memory-bytes": 256 << 20},
            "template": with_models("vllm"),
        },
        trainer={
            "procsPerNode": 2,
            "promptsPerStep": 16,
            "tokensPerMicroBatch": 256,
            "learningRate": 1e-5,
            "template": with_models("trainer"),
        },
        duration={"windows": 3},
        storage={"size": "5Gi", "accessModes": [ACCESS_MODE]},
        lifecycle={"ttlSecondsAfterFinished": 20},
    )
    runs.create(run)
    claim = runs.until("the claim is there", lambda: claim_of(runs))
    runs.until_phase("happy", "Running", seconds=600)
    assert runs.rollouts("happy") == (2, 2)
    runs.until_window("happy", 1, *ANSWERING, seconds=900)
    served = [
        runs.until(f"{pod} serves a trained version", lambda pod=pod: trained_version(runs, pod))
        for pod in runs.pod_names("rollout")
    ]
    runs.figures += [pause_of(runs, pod) for pod in runs.pod_names("rollout")]
    trained = runs.metrics(runs.pod_names("trainer")[0], TRAINER_PORT)
    assert re.search(r"^spinrun_trainer_window_reward_mean\{.*run=\"happy\".*\} 0\.\d", trained, re.MULTILINE)

    status = runs.until_phase("happy", "Complete", seconds=1200)

    assert status["metrics"]["accuracy"] > 0.6, "0.43 before"
    assert status["version"] == 3
    ledger = runs.ledger("happy", tmp_path, pod=runs.reader(claim))
    ledger.assert_whole()
    for version, digest in served:
        assert digest == ledger.manifests["evaluations"][version].parent, "rollouts and trainer have seen the same bytes"
    runs.until("no pod is left", lambda: not runs.pods())
    runs.until("the run is gone after its time", lambda: "happy" not in runs.kubectl("get", "spinrun", "--output=name"))
    assert claim_of(runs) == claim, "what it has learned is kept"
    runs.kubectl("delete", f"pod/reader-{claim}", f"pvc/{claim}")


def claim_of(runs: Runs) -> str:
    """The claim that the operator has made."""
    return runs.kubectl("get", "pvc", "--selector=spinrun.dev/run=happy", "--output=jsonpath={.items[*].metadata.name}")


def trained_version(runs: Runs, pod: str) -> tuple[int, str] | None:
    """Number and digest of the weights that an agent says its vLLM has; None while those are the source model's."""
    found = re.search(r'spinrun_rollout_version_info\{digest="(\w+)",version="(\d+)"\} 1', runs.metrics(pod, AGENT_PORT))
    return (int(found[2]), found[1]) if found and int(found[2]) > 0 else None


READ_ONCE = """
import glob, time
files = glob.glob(max(glob.glob('/ledger/**/weights/v*', recursive=True)) + '/*.safetensors')
began = time.perf_counter()
num_bytes = sum(len(open(file, 'rb', buffering=0).read()) for file in files)
print(f'{num_bytes} {time.perf_counter() - began}')
"""


def pause_of(runs: Runs, pod: str) -> str:
    """How long an agent's vLLM was paused for a version on average, beside reading such a version's bytes from the volume."""
    page = runs.metrics(pod, AGENT_PORT)
    paused = dict(re.findall(r"^spinrun_rollout_pause_seconds_(count|sum)\S* (\S+)$", page, re.MULTILINE))
    seconds = float(paused["sum"]) / float(paused["count"])
    num_bytes, raw = map(float, runs.kubectl("exec", pod, "--container=agent", "--", "python3", "-c", READ_ONCE).split())
    return f"{pod}: paused {seconds:.2f} s a version; {num_bytes / 1e6:.0f} MB read raw in {raw:.2f} s"
