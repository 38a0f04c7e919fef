"""A contender: TRL's OnlineDPOTrainer or GRPOTrainer until it answers the held-out questions well enough.

It generates with transformers. Prints a line of JSON for each evaluation. Answers are scored by SpinRun's rule lastNumber, in
training and on the held-out questions: the last number counts, and an answer that was cut off is wrong.
"""

import argparse
import os
import tempfile
import time
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from bench import workload
from spinrun_worker.data import arithmetic
from spinrun_worker.rewards.rules import last_number

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

GENERATIONS = 8
"""Answers to a prompt in GRPO: TRL's default, and the demo's."""
COMPLETIONS_PER_BATCH = 32
"""Answers that GRPO trains on at once; the others of a step are accumulated."""
STEPS_PER_EVALUATION = 4
"""As many as SpinRun's windows have."""
MAX_STEPS = 1000


class Examiner(TrainerCallback):
    """Evaluates as SpinRun does, before the first step and after every few, and ends the training."""

    def __init__(self, model: Any, tokenizer: Any, *, started: float, seconds: float, target: float) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._started, self._limit, self._target = started, seconds, target
        self._spent = 0.0
        rows = arithmetic.questions(workload.CONFIG, "test", block="bench")
        self._answers = [str(row["answer"]) for row in rows]
        prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        self._inputs = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )

    def on_train_begin(self, *given: Any, **_: Any) -> None:
        self._examine(0, given[2])

    def on_step_end(self, *given: Any, **_: Any) -> None:
        _, state, control = given
        if state.global_step % STEPS_PER_EVALUATION == 0:
            self._examine(state.global_step, control)
        if time.time() - self._started - self._spent > self._limit:
            control.should_training_stop = True

    def _examine(self, step: int, control: Any) -> None:
        began = time.time()
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad():
            output = self._model.generate(**self._inputs, max_new_tokens=workload.NEW_TOKENS, do_sample=False)
        self._model.train(was_training)
        completions = output[:, self._inputs["input_ids"].shape[1] :].tolist()
        right = [score(self._tokenizer, tokens, answer) for tokens, answer in zip(completions, self._answers, strict=True)]
        accuracy = sum(right) / len(right)
        # Seconds are those without evaluations: SpinRun's are counted, and run beside the next window's answers.
        workload.tell(step=step, accuracy=accuracy, seconds=began - self._started - self._spent, evaluating=self._spent)
        self._spent += time.time() - began
        if accuracy >= self._target:
            control.should_training_stop = True


def score(tokenizer: Any, tokens: list[int], answer: str) -> float:
    """The rule lastNumber; an answer without an end was cut off."""
    if tokenizer.eos_token_id not in tokens:
        return 0.0
    return last_number(tokenizer.decode(tokens[: tokens.index(tokenizer.eos_token_id)], skip_special_tokens=True), answer)


def main() -> None:
    """Train until the target or the limit is reached."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer", choices=["onlineDPO", "grpo"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--prompts", type=int, required=True, help="prompts of a step")
    parser.add_argument("--autocast", action="store_true", help="multiply in bfloat16; the weights are float32 in any case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, required=True, help="when the process was started, seconds since 1970")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--target", type=float, required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.padding_side = "left"
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": str(row["answer"])}
        for row in arithmetic.questions(workload.CONFIG, "train", block="bench")
    ]
    examiner = Examiner(model, tokenizer, started=options.started, seconds=options.seconds, target=options.target)
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "constant",
            "max_steps": MAX_STEPS,
            "gradient_checkpointing": False,
            "bf16": options.autocast,
            "use_cpu": True,
            "report_to": [],
            "logging_steps": 1000,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": options.seed,
            "temperature": workload.TEMPERATURE,
        }
        given: dict[str, Any] = {
            "model": model,
            "train_dataset": Dataset.from_list(rows),
            "processing_class": tokenizer,
            "callbacks": [examiner],
        }
        trainer = online_dpo(given, common, options) if options.trainer == "onlineDPO" else grpo(given, common, options)
        trainer.train()


def online_dpo(given: dict[str, Any], common: dict[str, Any], options: argparse.Namespace) -> OnlineDPOTrainer:
    """Two answers to a prompt, as this trainer has it. An answer without an end loses a reward of 1."""

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
        return [last_number(text, right) for text, right in zip(texts, answer, strict=True)]

    config = OnlineDPOConfig(
        **common,
        beta=cast(Any, workload.BETA),
        per_device_train_batch_size=options.prompts,
        max_new_tokens=workload.NEW_TOKENS,
        missing_eos_penalty=1.0,
    )
    return OnlineDPOTrainer(**given, args=config, reward_funcs=cast(Any, reward))


def grpo(given: dict[str, Any], common: dict[str, Any], options: argparse.Namespace) -> GRPOTrainer:
    """TRL's defaults otherwise: DAPO's loss, rewards scaled by the group, no reference."""
    tokenizer = given["processing_class"]

    def reward(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        return [score(tokenizer, tokens, right) for tokens, right in zip(completion_ids, answer, strict=True)]

    completions = options.prompts * GENERATIONS
    config = GRPOConfig(
        **common,
        per_device_train_batch_size=min(completions, COMPLETIONS_PER_BATCH),
        gradient_accumulation_steps=max(1, completions // COMPLETIONS_PER_BATCH),
        num_generations=GENERATIONS,
        max_completion_length=workload.NEW_TOKENS,
    )
    return GRPOTrainer(**given, args=config, reward_funcs=cast(Any, reward))


if __name__ == "__main__":
    main()
