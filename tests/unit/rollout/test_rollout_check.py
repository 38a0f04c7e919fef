"""What a rollout's pod says of its model before vLLM starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spinrun_api import yaml_text
from spinrun_protocol.environment import TERMINATION_LOG
from spinrun_protocol.termination import MAX_BYTES, TerminationMessage
from unit.operator.world import run_of

Json = dict[str, Any]


def check(
    folder: Path, config: Json | str | None, *, model_name: str = "model", **spec: Any
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run the process that a pod runs, for a model with this config.json."""
    model = folder / model_name
    model.mkdir()
    if config is not None:
        (model / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    run = run_of(model={"source": str(model)}, **spec)
    (folder / "run.yaml").write_text(yaml_text.dump(run.to_document()))
    command = [sys.executable, "-m", "spinrun_worker.rollout.check", "--run", str(folder / "run.yaml")]
    environment = os.environ | {TERMINATION_LOG: str(folder / "log"), "HF_HUB_OFFLINE": "1"}
    lengths = folder / "lengths.yaml"
    done = subprocess.run(
        [*command, "--lengths", str(lengths)], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    return done, lengths


def test_lengths_beyond_the_models_positions_end_with_2_and_a_message(tmp_path: Path) -> None:
    done, lengths = check(tmp_path, {"model_type": "llama", "max_position_embeddings": 512}, rollout={"maxTokens": 600})

    words = TerminationMessage.model_validate_json((tmp_path / "log").read_bytes())
    assert done.returncode == 2
    assert (words.result, words.reason, words.exit_code) == ("Failed", "InvalidConfiguration", 2)
    assert "spec.data.maxPromptTokens: 1 and spec.rollout.maxTokens 600 make 601 tokens, but the model reads 512" in words.message
    assert "Traceback" not in done.stderr
    assert not lengths.exists()


@pytest.mark.parametrize("config", ["", "{", None], ids=["empty", "torn", "missing"])
def test_a_config_that_cannot_be_read_ends_with_2_too(config: str | None, tmp_path: Path) -> None:
    done, _ = check(tmp_path, config)
    assert done.returncode == 2
    message = TerminationMessage.model_validate_json((tmp_path / "log").read_bytes()).message
    assert ("config.json cannot be read" if config is None else "config.json is not JSON") in message
    assert "Traceback" not in done.stderr


def test_a_right_model_leaves_word_of_the_lengths(tmp_path: Path) -> None:
    done, lengths = check(tmp_path, {"model_type": "llama", "max_position_embeddings": 512})
    assert done.returncode == 0, done.stderr
    assert lengths.read_text() == "max-model-len: 512\n"
    assert not (tmp_path / "log").exists()


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, spinrun_worker.rollout.check; "
        "print([name for name in ('torch', 'transformers', 'vllm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_message_of_the_check_is_short_and_tells_no_secret(tmp_path: Path) -> None:
    done, _ = check(tmp_path, "{", model_name=f"password=s3cr3t-{'x' * 100}")
    words = (tmp_path / "log").read_bytes()
    assert done.returncode == 2
    assert len(words) <= MAX_BYTES
    assert b"password=" in words
    assert b"s3cr3t" not in words
