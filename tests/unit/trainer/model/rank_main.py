"""One rank of a learner, run by test_world_size.py: trains, and saves what came out."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Optimizer

from spinrun_api.spec import Grpo, Lora, Method, Model, Trainer
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.learner import Learner, NonFiniteError
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import Policy, load_policy, shard_policy
from support.models import random_pairs

TOKENS_PER_MICRO_BATCH = 48
ADAPTERS = Lora(rank=4, alpha=32)
TRAINER = Trainer(tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH, max_grad_norm=1e9)


def loaded(
    model: str,
    compute_dtype: torch.dtype = torch.float32,
    *,
    activation_checkpointing: bool = False,
    lora: Lora | None = None,
) -> Policy:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(dist.get_rank())
    policy = load_policy(Model(source=model), lora=lora, seed=3)
    return shard_policy(policy, mesh=mesh, compute_dtype=compute_dtype, activation_checkpointing=activation_checkpointing)


def learner(policy: Policy, optimizer: Optimizer, trainer: Trainer = TRAINER, method: Method | None = None) -> Learner:
    return Learner(policy, optimizer, method=method or Method(), trainer=trainer)


def referred(learner: Learner, pairs: list[Pair]) -> list[Pair]:
    logprobs = learner.reference_logprobs(pairs)
    return [
        replace(pair, reference_chosen=chosen, reference_rejected=rejected)
        for pair, (chosen, rejected) in zip(pairs, logprobs, strict=True)
    ]


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in policy.state().items()
    }


def plain_descent(model: str, num_pairs: int, *, method: Method | None = None, alone: int = 0, **options: Any) -> dict[str, Any]:
    """Two steps of gradient descent with learning rate 1: the change of the weights is the gradient.

    alone: how many of the pairs, the first ones, lack their rejected completion.
    """
    policy = loaded(model, **options)
    trained = learner(policy, SGD(policy.parameters(), lr=1.0), method=method)
    bare = random_pairs(num_pairs, seed=1)
    pairs = referred(trained, [replace(pair, rejected=(), rejected_reward=0.0) for pair in bare[:alone]] + bare[alone:])
    start = weights(policy)
    first = trained.step(pairs, learning_rate=1.0)
    middle = weights(policy)
    second = trained.step(pairs, learning_rate=1.0)
    assert first is not None
    assert second is not None
    return {
        "reference": [(pair.reference_chosen, pair.reference_rejected) for pair in pairs],
        "figures": [first.figures, second.figures],
        "gradient": {name: start[name] - middle[name] for name in start},
        "weights": weights(policy),
        "sharded": isinstance(next(policy.parameters()), DTensor),
        "frozen": {str(parameter.dtype) for parameter in policy.parameters() if not parameter.requires_grad},
    }


def by_token(model: str) -> dict[str, Any]:
    """Two steps of grpo, whose second one has left the policy of the first; one answer is alone."""
    policy = loaded(model)
    method = Method(name="grpo", loss="grpo", kl_weight=0.1, grpo=Grpo(mean="answers"))
    trained = Learner(policy, SGD(policy.parameters(), lr=1.0), method=method, trainer=TRAINER, temperature=0.7)
    bare = random_pairs(5, seed=1)
    bare[0] = replace(bare[0], rejected=(), rejected_reward=0.0)
    logprobs = trained.logprobs_by_token(bare)
    pairs = [replace(pair, policy_by_token=of, sampled_by_token=of) for pair, of in zip(bare, logprobs, strict=True)]
    start = weights(policy)
    results = [trained.step(pairs, learning_rate=1.0) for _ in range(2)]
    return {
        "logprobs": [(each.chosen, each.rejected) for each in logprobs],
        "figures": [result.figures for result in results if result],
        "gradient": {name: start[name] - tensor for name, tensor in weights(policy).items()},
    }


def adamw(model: str) -> dict[str, Any]:
    policy = loaded(model)
    trained = learner(policy, make_optimizer(policy.parameters(), Trainer(weight_decay=0.1)), Trainer(max_grad_norm=0.01))
    pairs = referred(trained, random_pairs(8))
    figures = [trained.step(pairs, learning_rate=1e-3) for _ in range(3)]
    return {"losses": [result.figures["loss"] for result in figures if result]}


def stopped(model: str) -> dict[str, Any]:
    """Only the last rank is asked to stop, and only before its second micro-batch."""
    policy = loaded(model)
    trained = learner(policy, SGD(policy.parameters(), lr=1.0))
    pairs = referred(trained, random_pairs(12))
    start = weights(policy)
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return dist.get_rank() == dist.get_world_size() - 1 and asked == 2

    result = trained.step(pairs, learning_rate=1.0, should_stop=should_stop)
    return {
        "result": result,
        "asked": asked,
        "unchanged": all(torch.equal(tensor, start[name]) for name, tensor in weights(policy).items()),
        "gradients_left": any(parameter.grad is not None for parameter in policy.parameters()),
    }


def broken(model: str) -> dict[str, Any]:
    """One pair has an infinite reference; only one rank has that pair."""
    policy = loaded(model)
    trained = learner(policy, SGD(policy.parameters(), lr=1.0))
    pairs = referred(trained, random_pairs(6))
    pairs[2] = replace(pairs[2], reference_chosen=float("inf"))
    start = weights(policy)
    try:
        trained.step(pairs, learning_rate=1.0)
    except NonFiniteError as error:
        unchanged = all(torch.equal(tensor, start[name]) for name, tensor in weights(policy).items())
        return {"error": str(error), "unchanged": unchanged}
    return {"error": None}


def main(rank: int, world_size: int, folder: Path, model: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    outcome = {
        "eight pairs": plain_descent(model, 8),
        "one pair": plain_descent(model, 1),
        "cringe": plain_descent(model, 5, method=Method(loss="cringe", length_desensitize=0.5)),
        "advantages": plain_descent(model, 5, method=Method(name="sppo", loss="sppoAdvantage", kl_weight=0.1), alone=2),
        "grpo": by_token(model),
        "checkpointed": plain_descent(model, 8, activation_checkpointing=True),
        "bfloat16": plain_descent(model, 2, compute_dtype=torch.bfloat16),
        "adapters": plain_descent(model, 8, lora=ADAPTERS),
        "adapters, checkpointed": plain_descent(model, 8, lora=ADAPTERS, activation_checkpointing=True),
        "adapters in bfloat16": plain_descent(model, 2, lora=ADAPTERS, compute_dtype=torch.bfloat16),
        "adapters in bfloat16, checkpointed": plain_descent(
            model, 2, lora=ADAPTERS, compute_dtype=torch.bfloat16, activation_checkpointing=True
        ),
        "adamw": adamw(model),
        "stopped": stopped(model),
        "broken": broken(model),
    }
    torch.save(outcome, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
