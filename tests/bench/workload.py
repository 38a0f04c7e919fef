"""What all contenders of `make bench` are given: the same model, prompts, pairs and numbers."""

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from spinrun_worker.data import arithmetic
from spinrun_worker.ledger import read_pairs
from spinrun_worker.records import Pair

CONFIG = "addition-15"
PROMPTS_PER_STEP = 16
ANSWERS = 2
"""Answers to each prompt: as many as TRL's OnlineDPOTrainer takes."""
NEW_TOKENS = 16
TEMPERATURE = 0.7
BETA = 0.1
STEPS_PER_WINDOW = 4
GENERATION_PROMPTS = 64
GENERATION_ANSWERS = 8
GENERATION_SEQUENCES = 256
KV_CACHE_BYTES = 512 << 20
LEARNING_RATE = 1e-6
TOKENS_PER_MICRO_BATCH = 640
"""Half a step of 16 pairs: little slower than one row, and half its activations."""

FRUGAL_TOKENS_PER_MICRO_BATCH = 256
"""What memory is measured with: the demo's."""
CHECKPOINT_EVERY_STEPS = 500
"""As often as TRL's trainers write theirs unless told otherwise."""

SWITCHES = ("shared-prompts", "batched-attention", "fused-optimizer")
"""Optimisations of the train step that the bench can leave out. Tests prove that they change nothing but its time."""


def questions(limit: int) -> list[dict[str, str]]:
    """Rows with `prompt` and `answer` of the built-in arithmetic; again from the start when there are not so many."""
    rows = arithmetic.questions(CONFIG, "train", block="bench")
    return [{name: str(value) for name, value in row.items()} for row in islice(cycle(rows), limit)]


def chat_prompts(tokenizer: Any, repeat: int) -> list[list[int]]:
    """Token ids of the questions that are only answered, as the model's chat template puts them; others in each repeat."""
    rows = questions((repeat + 1) * GENERATION_PROMPTS)[-GENERATION_PROMPTS:]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for row in rows
    ]


def online_run(model: str, *, windows: int, answers: int = ANSWERS, dtype: str = "float32", overlap: int = 0) -> dict[str, Any]:
    """The run that `spinrun local` is measured with: TRL's prompts, answers and tokens of a step.

    Args:
        model: Folder of the model.
        windows: How many windows the run has.
        answers: Answers to each prompt.
        dtype: Of the rollouts. The trainer's weights are float32, and it multiplies in the faster dtype.
        overlap: Windows that the rollouts are ahead; in turn with the trainer they give the log-probs of its reference.
    """
    reference_or_overlap = {"overlap": overlap} if overlap else {"referenceLogprobs": "rollouts"}
    return {
        "apiVersion": "spinrun.dev/v1alpha1",
        "kind": "SpinRun",
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"source": model, "dtype": dtype},
            "data": {"prompts": {"source": arithmetic.SOURCE, "config": CONFIG}, "maxPromptTokens": 112},
            # TRL's rule scores answers that were cut off, too.
            "preference": {"rule": {"kind": "lastNumber", "truncated": "score"}},
            "method": {"beta": BETA, "refUpdateFreq": STEPS_PER_WINDOW} | reference_or_overlap,
            "rollout": {
                "samplesPerPrompt": answers,
                "temperature": TEMPERATURE,
                "maxTokens": NEW_TOKENS,
                "engineArgs": {"max-num-seqs": GENERATION_SEQUENCES, "kv-cache-memory-bytes": KV_CACHE_BYTES},
            },
            "trainer": {
                "promptsPerStep": PROMPTS_PER_STEP,
                "learningRate": LEARNING_RATE,
                "tokensPerMicroBatch": TOKENS_PER_MICRO_BATCH,
                "checkpointEverySteps": CHECKPOINT_EVERY_STEPS,
            },
            "duration": {"windows": windows},
        },
    }


def is_right(text: str, answer: str) -> bool:
    """The rule lastNumber."""
    numbers = re.findall(r"-?\d+", text)
    return bool(numbers) and numbers[-1] == answer


def recorded_pairs(folder: Path, limit: int) -> list[Pair]:
    """Pairs that a real run made, the first ones; folder: its ledger."""
    pairs = [pair for path in sorted(folder.glob("windows/*/pairs.parquet")) for pair in read_pairs(path)]
    return pairs[:limit]


def plain_tokens(pairs: list[Pair]) -> int:
    """Tokens of both sequences of each pair, its prompt in each: what a trainer without sharing computes."""
    return sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)


def matmul_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """FLOP/s of this machine's largest products: the best of some."""
    first, second = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return max(2 * size**3 / seconds(lambda: first @ second) for _ in range(repeats))


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time of an action."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tell(**figures: Any) -> None:
    """A contender's last word, which the bench reads."""
    print(json.dumps(figures), file=sys.stdout, flush=True)
