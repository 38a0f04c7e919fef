"""The block `data`."""

from pydantic import Field

from spinrun_api.base import ApiModel
from spinrun_api.spec.types import LongText, Text


class Prompts(ApiModel):
    """Where prompts come from and how a row becomes a prompt."""

    source: Text
    """A Hub data set id, the absolute path of a .jsonl, .parquet or .csv file on the ledger volume or in the image, or
    `arithmetic`, a built-in generator that needs nothing from outside."""

    config: Text | None = None
    """Configuration of a Hub data set. For `arithmetic`: OPERATION-LARGEST such as addition-15
    (addition, subtraction or multiplication of two numbers from 1 to LARGEST), which is also its default."""

    split: Text = "train"
    """Split of a Hub data set. For `arithmetic`: train or test, which have no question in common."""

    prompt_column: Text = "prompt"
    """Column that holds the prompt's text."""

    answer_column: Text | None = None
    """Column that holds the true answer, for rules that need one. `arithmetic` brings its own."""

    messages_column: Text | None = None
    """Column that holds a list of {role, content}, used instead of `promptColumn`."""

    template: LongText | None = None
    """Text with {column} in it, filled from the row, that becomes the user's message. Absent: the prompt column as it is."""

    limit: int | None = Field(default=None, ge=1)
    """Use the first this many prompts after shuffling. Absent: all."""

    shuffle_seed: int = Field(default=0, ge=0)
    """Seed of the order in which prompts are drawn; each epoch has an order of its own."""

    @property
    def has_answers(self) -> bool:
        """Whether a row brings the true answer."""
        return self.source == "arithmetic" or self.answer_column is not None


class Evaluation(Prompts):
    """Held-out prompts, answered greedily and scored by the run's preference.

    A judge or a ranker compares these answers with the true ones.
    """

    split: Text = "test"
    """Split of a Hub data set. For `arithmetic`: train or test, which have no question in common."""

    every_windows: int = Field(default=1, ge=1)
    """Evaluate version 0, every this many windows, and the last version."""


class Data(ApiModel):
    """Prompts to train on and, if wanted, to evaluate on."""

    prompts: Prompts
    """The prompts that the model answers in training."""

    evaluation: Evaluation | None = None
    """Held-out prompts. Absent: no evaluation, and no accuracy in the status."""

    max_prompt_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """Prompts longer than this, in tokens after the chat template, are dropped and counted. Absent: 1024, or what the model's
    positions leave beside `rollout.maxTokens`, if that is less."""
