"""A contender: optimizer steps of SpinRun's learner on recorded pairs."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from bench import workload
from spinrun_api.spec import Method, Model, Trainer
from spinrun_worker.trainer.distributed import join_ranks
from spinrun_worker.trainer.learner import Learner
from spinrun_worker.trainer.optimizer import make_optimizer
from spinrun_worker.trainer.policy import load_policy, shard_policy
from spinrun_worker.trainer.utilization import ModelFlops


def main() -> None:
    """Prints seconds of each step, and what they amount to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--pairs", type=int, default=workload.PROMPTS_PER_STEP)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=workload.TOKENS_PER_MICRO_BATCH, help="tokens of a micro-batch")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    with join_ranks("bench") as ranks:
        peak = workload.matmul_peak(dtype)
        policy = load_policy(Model(source=options.model))
        shard_policy(policy, mesh=init_device_mesh("cpu", (1,)), compute_dtype=dtype)
        settings = Trainer(learning_rate=workload.LEARNING_RATE, tokens_per_micro_batch=options.tokens)
        method = Method(beta=workload.BETA)
        learner = Learner(
            policy, make_optimizer(policy.parameters(), settings), method=method, trainer=settings, control=ranks.control
        )
        recorded = workload.recorded_pairs(options.ledger, options.pairs)
        reference_seconds = workload.seconds(lambda: learner.reference_logprobs(recorded))
        pairs = [
            replace(pair, reference_chosen=chosen, reference_rejected=rejected)
            for pair, (chosen, rejected) in zip(recorded, learner.reference_logprobs(recorded), strict=True)
        ]
        steps = [
            workload.seconds(lambda: learner.step(pairs, learning_rate=workload.LEARNING_RATE)) for _ in range(options.steps)
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
