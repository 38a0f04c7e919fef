"""A contender: optimizer steps of SpinRun's learner on recorded pairs; with --without, what one of its optimisations brings."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from bench import workload
from spinrun_api.spec import Method, Model, Trainer
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model import attention
from spinrun_worker.trainer.model.flops import ModelFlops
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.memory import trim_memory
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import load_policy, shard_policy
from spinrun_worker.trainer.ranks.distributed import join_ranks


def apart(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair as two, which have one of its answers each and compute the prompt once more. The work of pairs that share no
    prompt, not their loss."""
    return [
        half
        for pair in pairs
        for half in (replace(pair, rejected=(), reference_rejected=0.0), replace(pair, chosen=(), reference_chosen=0.0))
    ]


def main() -> None:
    """Prints seconds of each step, and what they amount to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--pairs", type=int, default=workload.PROMPTS_PER_STEP)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=workload.TOKENS_PER_MICRO_BATCH, help="tokens of a micro-batch")
    parser.add_argument("--without", choices=workload.SWITCHES, help="leave an optimisation out")
    options = parser.parse_args()
    if options.without == "batched-attention":
        attention.SHORT = 0
    dtype = getattr(torch, options.dtype)
    with join_ranks("bench") as ranks:
        peak = workload.matmul_peak(dtype)
        policy = load_policy(Model(source=options.model))
        shard_policy(policy, mesh=init_device_mesh("cpu", (1,)), compute_dtype=dtype)
        settings = Trainer(learning_rate=workload.LEARNING_RATE, tokens_per_micro_batch=options.tokens)
        method = Method(beta=workload.BETA)
        optimizer = make_optimizer(policy.parameters(), settings)
        if options.without == "fused-optimizer":
            for group in optimizer.param_groups:
                group["fused"] = False
        learner = Learner(policy, optimizer, method=method, trainer=settings, control=ranks.control)
        trim_memory()  # as the trainer does before its first window
        recorded = workload.recorded_pairs(options.ledger, options.pairs)
        reference_seconds = workload.seconds(lambda: learner.reference_logprobs(recorded))
        pairs = [
            replace(pair, reference_chosen=chosen, reference_rejected=rejected)
            for pair, (chosen, rejected) in zip(recorded, learner.reference_logprobs(recorded), strict=True)
        ]
        trained = apart(pairs) if options.without == "shared-prompts" else pairs
        steps = [
            workload.seconds(lambda: learner.step(trained, learning_rate=workload.LEARNING_RATE)) for _ in range(options.steps)
        ]
        workload.tell(
            steps=steps,
            reference=reference_seconds,
            pairs=len(pairs),
            tokens=workload.plain_tokens(pairs),
            flops=ModelFlops(policy).of_step(pairs),
            peak_flops=peak,
            peak_bytes=workload.peak_bytes(),
        )


if __name__ == "__main__":
    main()
