import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.models import tiny_llama
from support.ports import free_port
from support.trainer_process import UID, Attempts

TOKEN = "secret"


@contextlib.contextmanager
def running_agent() -> Generator[str]:
    """URL of an agent that answers by script; see scripted_agent.py for why."""
    port = free_port()
    script = Path(__file__).parents[2] / "support" / "scripted_agent.py"
    process = subprocess.Popen([sys.executable, script, "--port", str(port), "--token", TOKEN])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def scripted_agent() -> Iterator[str]:
    """URL of a scripted agent."""
    with running_agent() as url:
        yield url


def wait_until_up(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/healthz", timeout=1)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} did not come up")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


def tiny_run(model: Path) -> dict[str, Any]:
    """Two windows of two steps; the rule likes answers with a 1, which every first sample has and no second."""
    return {
        "apiVersion": "spinrun.dev/v1alpha1",
        "kind": "SpinRun",
        "metadata": {"name": "tiny", "namespace": "local", "uid": UID},
        "spec": {
            "model": {"source": str(model)},
            "data": {
                "prompts": {"source": "arithmetic", "config": "addition-5"},
                "evaluation": {"source": "arithmetic", "config": "addition-5", "split": "test"},
                "maxPromptTokens": 128,
            },
            "method": {"refUpdateFreq": 2},
            "preference": {"rule": {"kind": "regex", "pattern": "1"}},
            "rollout": {"samplesPerPrompt": 2, "maxTokens": 8},
            "trainer": {"promptsPerStep": 4, "learningRate": 1e-3, "tokensPerMicroBatch": 128, "computeDtype": "float32"},
            "duration": {"windows": 2},
        },
    }


@pytest.fixture
def attempts(tmp_path: Path, tiny_model: Path, scripted_agent: str) -> Attempts:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return Attempts(tmp_path, scripted_agent, token_file, tiny_run(tiny_model))
