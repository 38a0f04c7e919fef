"""`make bench-gpu`: the train step and whole windows on this machine's GPU, with random weights in the shapes of Qwen2.5.

Prints, for each shape: seconds and model FLOPs utilization of a train step, tokens a second, most GPU memory; and from a short
`spinrun local`: completion tokens a second, the rollout's pause at a boundary, and the phases of a window. On a machine without a
GPU, `--shapes tiny` tries the script itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from bench import bench_engine, workload  # noqa: E402
from spinrun_api.spec import Method, Model, Trainer  # noqa: E402
from spinrun_worker.trainer.model.learner import Learner  # noqa: E402
from spinrun_worker.trainer.model.memory import peak_bytes, peak_cuda_bytes  # noqa: E402
from spinrun_worker.trainer.model.optimizer import make_optimizer  # noqa: E402
from spinrun_worker.trainer.model.policy import load_policy, shard_policy  # noqa: E402
from spinrun_worker.trainer.ranks.distributed import join_ranks  # noqa: E402
from support.models import random_pairs, tiny_tokenizer  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
"""Of Qwen2.5, with its vocabulary."""
VOCABULARY = 151_936


def make_model(folder: Path, shape: str) -> Path:
    """Random weights in bfloat16, and the tests' tokenizer."""
    vocabulary = 512 if shape == "tiny" else VOCABULARY
    config = Qwen2Config(vocab_size=vocabulary, tie_word_embeddings=shape != "7B", eos_token_id=3, **SHAPES[shape])
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def train(model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Steps of the learner on random pairs."""
    with join_ranks("bench") as ranks:
        policy = load_policy(Model(source=str(model)))
        mesh = torch.distributed.device_mesh.init_device_mesh(ranks.device.type, (1,))
        shard_policy(policy, mesh=mesh, compute_dtype=torch.bfloat16, activation_checkpointing=options.recompute)
        settings = Trainer(tokens_per_micro_batch=options.row, learning_rate=workload.LEARNING_RATE)
        learner = Learner(
            policy, make_optimizer(policy.parameters(), settings), method=Method(), trainer=settings, control=ranks.control
        )
        lengths = (options.tokens // 2, options.tokens)
        pairs = random_pairs(options.pairs, prompt=lengths, completion=lengths)

        def step() -> None:
            learner.step(pairs, learning_rate=workload.LEARNING_RATE)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()

        seconds = sorted(workload.seconds(step) for _ in range(4))[1]
        return {
            "step_seconds": seconds,
            "mfu": learner.utilization(pairs, seconds),
            "tokens_per_second": sum(pair.num_tokens for pair in pairs) / seconds,
            "memory_bytes": float(peak_cuda_bytes() or peak_bytes()),
        }


def windows(model: Path, folder: Path) -> dict[str, float]:
    """A short `spinrun local`, colocated: rollout and trainer on the same GPU where there is one."""
    document = workload.online_run(str(model), windows=3, answers=8)
    document["spec"]["model"].pop("dtype")
    document["spec"]["preference"] = {"rule": {"kind": "regex", "pattern": "[a-m]"}}
    document["spec"]["rollout"] |= {"maxTokens": 256, "engineArgs": {}}
    figures = bench_engine.follow(document, folder)
    phases = figures["phases"][-1]
    return {
        "completion_tokens_per_second": figures["completion_tokens_per_second"],
        "pause_seconds": figures["pause"][-1],
        **{name.removeprefix("timing/"): value for name, value in phases.items()},
    }


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "7B"])
    parser.add_argument("--pairs", type=int, default=32, help="of a step")
    parser.add_argument("--tokens", type=int, default=512, help="longest prompt, and longest answer")
    parser.add_argument("--row", type=int, default=16_384, help="tokens of a micro-batch")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing")
    parser.add_argument("--only", choices=["train", "windows"], help="one part")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:  # a process of its own for each step's memory
        print(json.dumps(train(Path(options.one), options)))
        return
    if not torch.cuda.is_available() and options.shapes != ["tiny"]:
        raise SystemExit("no GPU here: nothing was measured (`--shapes tiny` tries the script)")
    view = Table("shape", "figure", "value")
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder) / "model", shape)
            figures: dict[str, float] = {}
            if options.only != "windows":
                command = [sys.executable, __file__, *sys.argv[1:], "--one", str(model)]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
                )
                figures |= json.loads(done.stdout.strip().splitlines()[-1])
            if options.only != "train":
                figures |= windows(model, Path(folder) / "run")
        for name, value in figures.items():
            view.add_row(shape, name, f"{value:.4g}")
    Console().print(view)
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "on a CPU")


if __name__ == "__main__":
    main()
