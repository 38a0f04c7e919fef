"""Adapters on one rank and on two: published by all, saved by some and loaded by others, and in each other's place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from spinrun_api.spec import Lora, Method, Model, Trainer
from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest
from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.trainer.build import adapter_assets
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.lora import FILE_DTYPE
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import load_policy, shard_policy
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.reference.older import in_place_of_policy
from spinrun_worker.trainer.storage.checkpoint import TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint
from spinrun_worker.trainer.storage.export import export_merged
from spinrun_worker.trainer.storage.publish import publish
from support.models import random_pairs, tiny_llama

PAIRS = random_pairs(6, seed=3)
TRAINER = Trainer(learning_rate=1e-2)


class Run:
    """Adapters, their optimizer and a ledger."""

    def __init__(self, ranks: Distributed, folder: str) -> None:
        torch.set_num_threads(1)
        self.ranks = ranks
        self.ledger = LedgerWriter(Path(folder) / "ledger", "uid", attempt=1)
        ranks.from_rank0(self.ledger.claim)
        self.model = Model(source=f"{folder}/model")
        self.policy = load_policy(self.model, lora=Lora(rank=3), seed=5)
        shard_policy(self.policy, mesh=init_device_mesh("cpu", (ranks.world_size,)), compute_dtype=torch.float32)
        self.optimizer = make_optimizer(self.policy.parameters(), TRAINER)
        self.learner = Learner(self.policy, self.optimizer, method=Method(), trainer=TRAINER, control=ranks.control)

    def step(self, count: int) -> None:
        for _ in range(count):
            self.learner.step(PAIRS, learning_rate=1e-2)

    def publish(self, version: int) -> Manifest:
        assert self.policy.adapters is not None
        assets = adapter_assets(self.policy.adapters, {"config.json": b"{}", "tokenizer.json": b"{}"})
        state = self.policy.state()
        return publish(
            self.ledger, self.ranks, state, version=version, step=0, dtype=FILE_DTYPE, assets=assets, file=ADAPTER_WEIGHTS
        )

    def logprobs(self) -> list[tuple[float, float]]:
        return self.learner.reference_logprobs(PAIRS)

    def weights(self) -> dict[str, Tensor]:
        return {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
            for name, tensor in self.policy.state().items()
        }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_llama(tmp_path / "model")
    return str(tmp_path)


def published(ranks: Distributed, folder: str) -> dict[str, Any]:
    run = Run(ranks, folder)
    run.step(2)
    manifest = run.publish(1)
    on_disk = load_file(run.ledger.layout.weights(1) / ADAPTER_WEIGHTS)
    return {
        "files": [file.path for file in manifest.files],
        "bit for bit": same(on_disk, run.weights()),
        "digest": manifest.digest,
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_version_is_one_file_with_the_adapters_bit_for_bit(run_ranks: Any, folder: str, world_size: int) -> None:
    outcomes = run_ranks(world_size, published, folder)
    for outcome in outcomes:
        assert outcome["files"] == [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json"]
        assert outcome["bit for bit"]
    assert len({outcome["digest"] for outcome in outcomes}) == 1


def interrupted(ranks: Distributed, folder: str) -> dict[str, Any]:
    undisturbed = Run(ranks, folder)
    undisturbed.step(2)
    save_checkpoint(undisturbed.ledger, ranks, undisturbed.policy, undisturbed.optimizer, TrainerState(step=2, version=1))
    undisturbed.step(2)
    return {"resumed": same(resumed(ranks, folder), undisturbed.weights()), "numbers": numbers(undisturbed.weights())}


def resumed_elsewhere(ranks: Distributed, folder: str) -> dict[str, Any]:
    return numbers(resumed(ranks, folder))


def numbers(weights: dict[str, Tensor]) -> dict[str, Any]:
    """In a form that outlives the process."""
    return {name: tensor.tolist() for name, tensor in weights.items()}


def resumed(ranks: Distributed, folder: str) -> dict[str, Tensor]:
    """The weights of an attempt that begins at the checkpoint."""
    run = Run(ranks, folder)
    checkpoint = latest_checkpoint(run.ledger, ranks)
    assert checkpoint is not None
    load_checkpoint(run.ledger, ranks, run.policy, run.optimizer, checkpoint)
    run.step(2)
    return run.weights()


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(1, 2), (2, 1)])
def test_training_continues_bit_for_bit_on_the_same_ranks_and_alike_on_others(
    run_ranks: Any, folder: str, saved_by: int, loaded_by: int
) -> None:
    saved = run_ranks(saved_by, interrupted, folder)
    assert all(outcome["resumed"] for outcome in saved)
    for outcome in run_ranks(loaded_by, resumed_elsewhere, folder):
        for name, numbers in saved[0]["numbers"].items():
            got, want = torch.tensor(outcome[name]), torch.tensor(numbers)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-3 * want.abs().max().item(), msg=name)


def swapped(ranks: Distributed, folder: str) -> dict[str, Any]:
    run = Run(ranks, folder)
    at_first, version = run.logprobs(), run.publish(0)
    run.step(2)
    weights, later = run.weights(), run.logprobs()
    with in_place_of_policy(run.ledger, ranks, run.policy.state(), version):
        inside = run.logprobs()
    return {"inside": inside == at_first, "moved": later != at_first, "back": same(run.weights(), weights)}


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_older_adapter_takes_the_place_of_the_policy(run_ranks: Any, folder: str, world_size: int) -> None:
    for outcome in run_ranks(world_size, swapped, folder):
        assert outcome == {"inside": True, "moved": True, "back": True}


def exported(ranks: Distributed, folder: str) -> dict[str, Any]:
    run = Run(ranks, folder)
    run.step(2)
    version = run.publish(1)

    def export() -> Manifest:
        return export_merged(run.ledger, ranks, version, model=run.model, dtype=torch.bfloat16, assets={"config.json": b"{}"})

    manifest = export()
    return {"once": export() == manifest, "parent": manifest.parent == version.digest, "kind": manifest.kind}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_merged_model_is_written_by_all_ranks_in_the_type_of_whole_models(run_ranks: Any, folder: str, world_size: int) -> None:
    for outcome in run_ranks(world_size, exported, folder):
        assert outcome == {"once": True, "parent": True, "kind": "merged"}
    merged, source = Path(folder, "ledger", "merged", "v000001"), load_file(f"{folder}/model/model.safetensors")
    shards = sorted(merged.glob("*.safetensors"))
    assert len(shards) == world_size
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, source[name].bfloat16())}
    assert tensors.keys() == source.keys()
    assert changed == {name for name in tensors if name.endswith("proj.weight")}
