"""What a window asks for, and of which model: the numbers that a run's spec gives, and those that only its data could."""

import math
from dataclasses import dataclass

from spinrun_cli.estimate.shape import Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number."""

OPTIMIZER_NUMBERS = {"adamw": 2, "rmsprop": 1}
"""Numbers in fp32 that an optimizer keeps beside each weight."""


@dataclass(frozen=True)
class Work:
    """A window of a run, and how its processes are laid out."""

    shape: Shape
    prompts: float
    """Of a window."""
    answers: int
    """To each prompt."""
    prompt_tokens: float
    """Of a prompt, on average."""
    answer_tokens: float
    """Of an answer, on average."""
    longest_prompt: int
    """Tokens of a prompt at most."""
    longest_answer: int
    """Tokens of an answer at most."""
    pairs_per_prompt: float = 0.7
    """Pairs that a prompt makes on average: fewer than one where answers tie."""
    steps: int = 16
    replayed: int = 0
    """Earlier windows whose pairs it trains on too; they are among its steps."""
    ranks: int = 1
    ranks_per_node: int = 1
    rollouts: int = 1
    tensor_parallel: int = 1
    """GPUs of a rollout."""
    row_tokens: int = 4096
    """Tokens that a rank processes at once."""
    compute_dtype: str = "bfloat16"
    published_dtype: str = "bfloat16"
    rollout_dtype: str = "bfloat16"
    optimizer: str = "adamw"
    activation_checkpointing: bool = False
    adapters: int = 0
    """Weights of LoRA adapters, which alone are then trained and published; 0: the whole model is."""
    reference_pass: bool = True
    """Whether the trainer computes the reference; else the rollouts say it, or the loss compares with none."""
    overlap: bool = False
    """Whether the rollouts answer the next window's prompts while the trainer trains."""
    shares_cores: bool = False
    """Whether trainer and rollouts are on the same cores, so that a checkpoint takes its time from the generation."""
    evaluation_prompts: float = 0.0
    """Held-out prompts of a window on average, one answer each."""
    checkpoints: float = 1.0
    """Of a window."""
    score_seconds: float | None = 0.0
    """For each answer; None where another model says it, whose time is not known."""
    sequences: int = 256
    """That vLLM takes at once."""
    batched_tokens: int = 2048
    """Tokens of a batch of vLLM."""
    memory_utilization: float = 0.92
    """Share of a GPU's memory that vLLM takes."""
    cache_bytes: float | None = None
    """Of the KV cache where the run gives its size; None: what is left."""

    @property
    def trained(self) -> int:
        """Weights that the optimizer updates."""
        return self.adapters or self.shape.parameters

    @property
    def pairs(self) -> float:
        """Of a window, with those of the windows that it replays."""
        return self.prompts * self.pairs_per_prompt * (1 + self.replayed)

    @property
    def pair_tokens(self) -> float:
        """Of a pair, its prompt once for both answers."""
        return self.prompt_tokens + 2 * self.answer_tokens

    @property
    def version_bytes(self) -> float:
        """Of a published version."""
        return 4 * self.adapters if self.adapters else self.shape.parameters * BYTES[self.published_dtype]

    @property
    def checkpoint_bytes(self) -> float:
        """Weights and the optimizer's numbers, in fp32."""
        return self.trained * 4 * (1 + OPTIMIZER_NUMBERS[self.optimizer])

    @property
    def largest_step_pairs(self) -> float:
        """Pairs of a window's largest steps: two standard deviations more than on average, where prompts tie by chance."""
        mean = self.pairs / self.steps
        share = min(self.pairs_per_prompt, 1.0)
        return min(mean + 2 * math.sqrt(mean * (1 - share)), max(mean, self.prompts * (1 + self.replayed) / self.steps))

    @property
    def rows(self) -> float:
        """Rows of tokens that a rank processes in a step."""
        return max(
            1.0, math.ceil(self.pairs / self.steps * self.pair_tokens / self.ranks / max(self.row_tokens, self.pair_tokens))
        )

    @property
    def largest_step(self) -> float:
        """Tokens of a window's largest steps on one rank."""
        return max(self.largest_step_pairs / self.ranks, 1.0) * self.pair_tokens

    @property
    def row(self) -> float:
        """Tokens of the fullest row."""
        longest_pair = self.longest_prompt + 2 * self.longest_answer
        return min(max(self.row_tokens, longest_pair), self.largest_step)
