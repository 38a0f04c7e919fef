"""A contender: optimizer steps of TRL's DPOTrainer on the same recorded pairs."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from bench import workload


class Stopwatch(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(time.perf_counter() - self._started)


def settings(folder: str, *, batch: int, steps: int) -> dict[str, Any]:
    """What both of TRL's trainers are told."""
    return {
        "output_dir": folder,
        "beta": workload.BETA,
        "learning_rate": workload.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "gradient_checkpointing": False,
        "bf16": False,  # the model itself has the dtype
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1000,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def text_pairs(ledger: Path, tokenizer: Any, limit: int) -> Dataset:
    """The recorded pairs as text. TRL adds the end token itself."""

    def text(tokens: tuple[int, ...]) -> str:
        return tokenizer.decode(tokens).removesuffix(tokenizer.eos_token)

    pairs = workload.recorded_pairs(ledger, limit)
    rows = [
        {"prompt": tokenizer.decode(pair.prompt), "chosen": text(pair.chosen), "rejected": text(pair.rejected)} for pair in pairs
    ]
    return Dataset.from_list(rows)


def main() -> None:
    """Prints seconds of each step, and the most memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--pairs", type=int, default=workload.PROMPTS_PER_STEP)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--reference-model", action="store_true", help="hold a second model instead of precomputed log-probs")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            **settings(folder, batch=options.pairs, steps=options.steps),
            precompute_ref_log_probs=not options.reference_model,
        )
        trainer = DPOTrainer(
            model=model,
            args=config,
            train_dataset=text_pairs(options.ledger, tokenizer, options.pairs),
            processing_class=tokenizer,
            callbacks=[stopwatch],
        )
        trainer.train()
    workload.tell(
        steps=stopwatch.steps,
        tokens=workload.plain_tokens(workload.recorded_pairs(options.ledger, options.pairs)),
        peak_bytes=workload.peak_bytes(),
    )


if __name__ == "__main__":
    main()
