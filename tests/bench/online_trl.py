"""A contender: TRL's OnlineDPOTrainer, which generates with transformers."""

import argparse
import os
import tempfile
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import workload
from bench.train_trl import Stopwatch, settings

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer


class Rule:
    """The rule lastNumber as TRL's reward function; counts pairs whose two answers differ."""

    __name__ = "last_number"

    def __init__(self) -> None:
        self.useful: list[int] = []

    def __call__(self, completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
        rewards = [float(workload.is_right(text, right)) for text, right in zip(texts, answer, strict=True)]
        half = len(rewards) // 2
        self.useful.append(sum(first != second for first, second in zip(rewards[:half], rewards[half:], strict=True)))
        return rewards


def main() -> None:
    """Prints seconds and useful pairs of each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.padding_side = "left"
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]}
        for row in workload.questions(workload.PROMPTS_PER_STEP * options.steps)
    ]
    stopwatch, rule = Stopwatch(), Rule()
    with tempfile.TemporaryDirectory() as folder:
        config = OnlineDPOConfig(
            **settings(folder, batch=workload.PROMPTS_PER_STEP, steps=options.steps),
            max_new_tokens=workload.NEW_TOKENS,
            temperature=workload.TEMPERATURE,
        )
        trainer = OnlineDPOTrainer(
            model=model,
            reward_funcs=cast(Any, rule),  # any callable with a name does
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[stopwatch],
        )
        trainer.train()
    workload.tell(steps=stopwatch.steps, useful=rule.useful, pairs=workload.PROMPTS_PER_STEP, peak_bytes=workload.peak_bytes())


if __name__ == "__main__":
    main()
