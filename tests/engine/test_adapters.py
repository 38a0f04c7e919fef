"""Adapters with a real vLLM that was started for them, and a whole run that trains some."""

import asyncio
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.test_engine_rollout import LOAD_SECONDS, compared_tokens, greedy, prompts, restart, strengthen_layers
from spinrun_api.spec import Lora, Model
from spinrun_protocol.commands import SERVED_MODEL
from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest
from spinrun_worker.ledger import Ledger, read_metrics, verify_tree
from spinrun_worker.rollout.staging import weights_label
from spinrun_worker.trainer.model.policy import load_policy
from support.documents import letters_run
from support.engines import VllmServer, running_vllm, tiny_run
from support.models import tiny_llama
from support.rollouts import AgentClient, Publisher
from unit.trainer.model.test_lora import move, write

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

LORA = {"rank": 4, "alpha": 64}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose answers depend on its layers."""
    path = tiny_llama(tmp_path_factory.mktemp("model") / "base", seed=6)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        strengthen_layers(model)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vllm(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[VllmServer]:
    with running_vllm(tiny_run(base_model, lora=LORA), tmp_path_factory.mktemp("vllm") / "log") as server:
        yield server


def publish(publisher: Publisher, version: int, base: Path, folder: Path, *, seed: int | None) -> Manifest:
    """Publish adapters with random values of this seed, or new ones."""
    policy = load_policy(Model(source=str(base)), lora=Lora.model_validate(LORA), seed=1)
    if seed is not None:
        move(policy, seed)
    written = write(policy, folder / str(version))
    paths = [base / "config.json", written / ADAPTER_CONFIG, written / ADAPTER_WEIGHTS]
    return publisher.publish(version, {path.name: path.read_bytes() for path in paths})


async def test_each_version_answers_as_transformers_and_peft_do(
    agent: AgentClient, vllm: VllmServer, base_model: Path, publisher: Publisher, tmp_path: Path
) -> None:
    new, first, second = (
        publish(publisher, version, base_model, tmp_path, seed=seed) for version, seed in enumerate((None, 1, 2))
    )
    answers = []
    for manifest in (new, first, second, first):
        await agent.serve(manifest, LOAD_SECONDS)
        answers.append(await greedy(agent, manifest))
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    assert compared_tokens(base, answers[0]) >= 16, "version 0 is the base"
    for answer, version in ((answers[1], 1), (answers[2], 2)):
        plain = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
        assert compared_tokens(PeftModel.from_pretrained(plain, publisher.path(version)), answer) >= 16
    assert all(len({str(answer[name]) for answer in answers[:3]}) == 3 for name in answers[0])
    assert answers[3] == answers[1]

    async with httpx.AsyncClient(base_url=vllm.url) as client:
        names = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
    assert names == [SERVED_MODEL, weights_label(second), weights_label(first)], "at most one beside the served one"


async def test_a_version_that_is_not_loaded_is_answered_by_nobody(
    agent: AgentClient, vllm: VllmServer, base_model: Path, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publish(publisher, 0, base_model, tmp_path, seed=3)
    await agent.serve(manifest, LOAD_SECONDS)
    request = {"prompt": [5, 6, 7], "max_tokens": 2}
    async with httpx.AsyncClient(base_url=vllm.url, timeout=120) as client:
        loaded, other = [
            await client.post("/v1/completions", json=request | {"model": model})
            for model in (weights_label(manifest), f"1-{manifest.digest}")
        ]
    assert (loaded.status_code, other.status_code) == (200, 404)


async def test_vllm_that_was_killed_comes_back_with_the_wanted_adapter(
    agent: AgentClient, vllm: VllmServer, base_model: Path, publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publish(publisher, 0, base_model, tmp_path, seed=4)
    await agent.serve(manifest, LOAD_SECONDS)
    before = await greedy(agent, manifest)
    call = asyncio.create_task(agent.samples(manifest, prompts(64), n=8, temperature=1.0, maxTokens=60))
    await asyncio.sleep(0.5)
    vllm.kill()
    _, lines = await call
    assert lines[-1] == {"event": "end"}
    assert all(line["retryable"] for line in lines if line["event"] == "failed")
    state = await agent.until(lambda state: state["state"] == "waiting", 60)
    assert "serving" not in state
    await restart(vllm)
    await agent.until_serving(manifest, LOAD_SECONDS)
    assert await greedy(agent, manifest) == before


def test_a_run_trains_adapters_and_exports_a_whole_model(base_model: Path, tmp_path: Path) -> None:
    document = letters_run(
        "adapters",
        model={"source": str(base_model)},
        trainer={"promptsPerStep": 4, "learningRate": 1e-3, "lora": {**LORA, "exportMerged": True}},
        duration={"windows": 3},
    )
    run, folder = tmp_path / "run.yaml", tmp_path / "run"
    run.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "spinrun_cli.main", "local", run, "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "complete: held-out accuracy" in done.stdout
    assert (folder / "report.html").exists()
    assert {finding.state for finding in verify_tree(folder / "ledger")} == {"committed"}
    lines = read_metrics(folder / "ledger" / "metrics.jsonl")
    assert [line.version for line in lines if line.event == "evaluation"] == [0, 1, 2, 3]
    (uid,) = {manifest.uid for manifest in (finding.manifest for finding in verify_tree(folder / "ledger")) if manifest}
    layout = Ledger(folder / "ledger", uid).layout
    plain = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, layout.weights(3))
    merged = AutoModelForCausalLM.from_pretrained(layout.path("merged", 3), dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(layout.path("merged", 3))("What is 2 + 3?", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-3)
