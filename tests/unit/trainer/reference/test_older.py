"""An older version in the policy's place while its log-probs are computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from spinrun_api.spec import Method, Model, Trainer
from spinrun_protocol.ledger import Manifest
from spinrun_worker.ledger import LedgerWriter, TornError
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import Policy, load_policy, shard_policy
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.reference.older import in_place_of_policy
from spinrun_worker.trainer.storage.publish import publish
from support.models import random_pairs, tiny_llama

PAIRS = random_pairs(6, seed=3)


class Run:
    """A policy that has published the weights it began with, in bfloat16, and has moved on from them."""

    def __init__(self, ranks: Distributed, folder: str, compute_dtype: torch.dtype = torch.float32) -> None:
        self.ranks = ranks
        self.ledger = LedgerWriter(Path(folder) / "ledger", "uid", attempt=1)
        ranks.from_rank0(self.ledger.claim)
        self.policy = policy_of(ranks, f"{folder}/model", compute_dtype)
        self.reference = self.publish(0)
        trainer = Trainer(learning_rate=1e-2)
        self.learner = Learner(
            self.policy,
            make_optimizer(self.policy.parameters(), trainer),
            method=Method(),
            trainer=trainer,
            control=ranks.control,
        )
        self.move()

    def publish(self, version: int) -> Manifest:
        state = self.policy.state()
        return publish(
            self.ledger, self.ranks, state, version=version, step=0, dtype=torch.bfloat16, assets={"config.json": b"{}"}
        )

    def move(self) -> None:
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.mul_(1.25).add_(0.01)

    def logprobs(self) -> list[tuple[float, float]]:
        return self.learner.reference_logprobs(PAIRS)

    def weights(self) -> dict[str, Tensor]:
        return {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
            for name, tensor in self.policy.state().items()
        }


def policy_of(ranks: Distributed, model: str, compute_dtype: torch.dtype) -> Policy:
    torch.set_num_threads(1)
    policy = load_policy(Model(source=model))
    return shard_policy(policy, mesh=init_device_mesh("cpu", (ranks.world_size,)), compute_dtype=compute_dtype)


def swapped(ranks: Distributed, folder: str, compute_dtype: str) -> dict[str, Any]:
    run = Run(ranks, folder, getattr(torch, compute_dtype))
    weights, logprobs = run.weights(), run.logprobs()
    with in_place_of_policy(run.ledger, ranks, run.policy.state(), run.reference):
        inside, held = run.logprobs(), run.publish(1).files
    return {
        "before": logprobs,
        "inside": inside,
        "after": run.logprobs(),
        "policy is back": all(torch.equal(tensor, weights[name]) for name, tensor in run.weights().items()),
        "of source": of_source(ranks, folder, compute_dtype),
        "version was in its place": held == run.reference.files,
    }


def of_source(ranks: Distributed, folder: str, compute_dtype: str) -> list[tuple[float, float]]:
    """Log-probs of the source's weights, rounded as they are published, in a policy that never had others."""
    policy = policy_of(ranks, f"{folder}/model", getattr(torch, compute_dtype))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(parameter.bfloat16())
    optimizer = make_optimizer(policy.parameters(), Trainer())
    return Learner(policy, optimizer, method=Method(), trainer=Trainer(), control=ranks.control).reference_logprobs(PAIRS)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_llama(tmp_path / "model")
    return str(tmp_path)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_log_probs_are_those_of_the_older_version_and_the_policy_comes_back_bit_for_bit(
    run_ranks: Any, folder: str, world_size: int, compute_dtype: str
) -> None:
    for outcome in run_ranks(world_size, swapped, folder, compute_dtype):
        assert outcome["inside"] == outcome["of source"], "the version as it was published, not the policy that published it"
        assert outcome["inside"] != outcome["before"]
        assert outcome["after"] == outcome["before"]
        assert outcome["policy is back"]
        assert outcome["version was in its place"]


def refused(ranks: Distributed, folder: str) -> dict[str, Any]:
    """The last file of the version has one byte changed, of a tensor of its own."""
    run = Run(ranks, folder)
    weights = run.weights()
    path = sorted(run.ledger.layout.weights(0).glob("*.safetensors"))[-1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    ranks.barrier()
    ranks.from_rank0(lambda: path.write_bytes(content))
    try:
        with in_place_of_policy(run.ledger, ranks, run.policy.state(), run.reference):
            return {"error": None}
    except TornError as error:
        message = str(error)
    return {
        "error": message,
        "path": str(path),
        "policy is back": all(torch.equal(tensor, weights[name]) for name, tensor in run.weights().items()),
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_version_with_a_changed_byte_is_refused_by_name_on_every_rank(run_ranks: Any, folder: str, world_size: int) -> None:
    for outcome in run_ranks(world_size, refused, folder):
        assert outcome["error"] == f"{outcome['path']} has different content than MANIFEST.json says (xxh3-128 differs)"
        assert outcome["policy is back"]


def with_other_tensors(ranks: Distributed, folder: str) -> list[str]:
    """What is said of versions that lack a tensor, have one more, and have one of another shape."""
    run = Run(ranks, folder)
    messages: list[str] = []
    name = next(iter(run.policy.state()))
    for number, change in enumerate(("missing", "more", "shape"), start=3):
        state = dict(run.policy.state())
        tensor = state.pop(name)
        if change != "missing":
            state[name if change == "shape" else "more"] = torch.zeros(3)
        if change == "more":
            state[name] = tensor
        weights = publish(run.ledger, ranks, state, version=number, step=0, dtype=torch.float32, assets={"config.json": b"{}"})
        with pytest.raises(TornError) as raised, in_place_of_policy(run.ledger, ranks, run.policy.state(), weights):
            pass
        messages.append(str(raised.value))
    return messages


def test_weights_of_another_model_are_refused(run_ranks: Any, folder: str) -> None:
    (missing, more, shape), *_ = run_ranks(1, with_other_tensors, folder)
    assert "v000003 lacks model.embed_tokens.weight, which this model has" in missing
    assert "holds more (3,), for which this model has no place" in more
    assert "holds model.embed_tokens.weight (3,), for which this model has no place" in shape
