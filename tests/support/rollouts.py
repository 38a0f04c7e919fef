"""What tests of the rollout agent share: a ledger with tiny published weights, and an agent with its client."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp.test_utils import TestClient
from safetensors.numpy import save

from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest
from spinrun_worker.ledger.files import write_file, write_json
from spinrun_worker.ledger.ledger import LedgerWriter
from spinrun_worker.rollout.app import RolloutApp

UID = "00000000-1111-2222-3333-444444444444"
TOKEN = "secret"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
VOCABULARY = 100

Files = dict[str, bytes | dict[str, Any]]


class Publisher:
    """Writes versions as the trainer does."""

    def __init__(self, root: Path) -> None:
        self.writer = LedgerWriter(root, UID, attempt=1)
        self.writer.claim()

    def path(self, version: int) -> Path:
        return self.writer.layout.weights(version)

    def publish(self, version: int, files: Files | None = None, *, fill: float | None = None) -> Manifest:
        """fill: value of every parameter, by default the version."""
        directory = self.writer.begin("weights", version)
        content = files if files is not None else model_files(version if fill is None else fill)
        entries = [
            write_file(directory / name, [data]) if isinstance(data, bytes) else write_json(directory / name, data)
            for name, data in content.items()
        ]
        return self.writer.commit("weights", version, entries, step=version, version=version)


def tensors(fill: float) -> dict[str, np.ndarray]:
    return {"embed.weight": np.full((VOCABULARY, 4), fill, np.float32), "norm.weight": np.full(4, fill, np.float32)}


def model_files(fill: float = 0.0) -> Files:
    return {"config.json": {"vocab_size": VOCABULARY}, "model.safetensors": save(tensors(fill))}


def adapter_files(fill: float = 0.0) -> Files:
    """A version that is an adapter, and the configuration of its base."""
    content = {f"base_model.model.norm.lora_{part}.weight": np.full((4, 4), fill, np.float32) for part in "AB"}
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["norm"]}
    return {"config.json": {"vocab_size": VOCABULARY}, ADAPTER_CONFIG: config, ADAPTER_WEIGHTS: save(content)}


class AgentClient:
    """Calls an agent as the trainer does."""

    def __init__(self, session: aiohttp.ClientSession | TestClient[Any, Any]) -> None:
        """session: has the agent as its base URL."""
        self.client = session

    async def want(self, manifest: Manifest) -> tuple[int, dict[str, Any]]:
        body = {"version": manifest.version, "manifest": manifest.to_document()}
        async with self.client.put("/v1/version", json=body, headers=AUTHORIZED) as response:
            return response.status, await response.json()

    async def state(self) -> dict[str, Any]:
        async with self.client.get("/v1/version", headers=AUTHORIZED) as response:
            return await response.json()

    async def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 10) -> dict[str, Any]:
        """The first state that fulfils a condition."""
        async with asyncio.timeout(seconds):
            while not condition(state := await self.state()):  # noqa: ASYNC110 - the state is behind HTTP
                await asyncio.sleep(0.005)
        return state

    async def until_serving(self, manifest: Manifest, seconds: float = 10) -> None:
        await self.until(lambda state: state["state"] == "serving" and state["servingDigest"] == manifest.digest, seconds)

    async def serve(self, manifest: Manifest, seconds: float = 10) -> None:
        """Ask for a version and wait until it is served."""
        assert (await self.want(manifest))[0] == 202
        await self.until_serving(manifest, seconds)

    def request(self, manifest: Manifest, prompts: dict[str, list[int]], **sampling: Any) -> dict[str, Any]:
        return {
            "version": manifest.version,
            "digest": manifest.digest,
            "sampling": {"n": 2, "temperature": 0.7, "maxTokens": 3} | sampling,
            "prompts": [{"id": name, "tokens": tokens} for name, tokens in prompts.items()],
        }

    async def samples(
        self, manifest: Manifest, prompts: dict[str, list[int]], **sampling: Any
    ) -> tuple[int, list[dict[str, Any]]]:
        """Status and lines of a call for samples."""
        body = self.request(manifest, prompts, **sampling)
        async with self.client.post("/v1/samples", json=body, headers=AUTHORIZED) as response:
            lines = (await response.text()).splitlines()
            return response.status, [json.loads(line) for line in lines]


class AgentUnderTest(AgentClient):
    """An agent in this process, and its client."""

    def __init__(self, client: TestClient[Any, Any], agent: RolloutApp, loop: asyncio.Task[None]) -> None:
        super().__init__(client)
        self.agent = agent
        self.loop = loop
