"""The block `data`."""

from pydantic import Field

from spinrun_api.base import ApiModel
from spinrun_api.spec.types import LongText, Text

DATA_SUFFIXES = (".jsonl", ".parquet", ".csv", ".json", ".jsonl.gz", ".csv.gz", ".json.gz")
"""Ends of the names of files that prompts are read from."""


GENERATORS = ("arithmetic", "letters")
"""Sources that are built in, and bring their own answers."""


class Prompts(ApiModel):
    """Where prompts come from and how a row becomes a prompt."""

    source: Text
    """A Hub data set id, the absolute path of a file on the ledger volume or in the image, or `arithmetic` or `letters`, built-in
    generators that need nothing from outside. A file ends in .jsonl, .json (a list of objects, also one under the key data), .csv
    or .parquet; all but .parquet also with .gz."""

    config: Text | None = None
    """Configuration of a Hub data set. For `arithmetic`: OPERATION-LARGEST such as addition-15
    (addition, subtraction or multiplication of two numbers from 1 to LARGEST), which is also its default. For `letters`:
    TASK-SIZE such as sort-2, its default: sort (SIZE letters in the order of the alphabet), count (how often one of SIZE letters
    occurs) or longest (of SIZE words), SIZE from 2 to 8."""

    split: Text = "train"
    """Split of a Hub data set. For `arithmetic` and `letters`: train or test, which have no question in
    common."""

    prompt_column: Text = "prompt"
    """Column that holds the prompt's text. In this and in all other names of columns a dot leads to a field inside a column
    (`extra_info.question`, `turns.0.text`, `turns.-1.text`), unless a column has that very name."""

    answer_column: Text | None = None
    """Column that holds the true answer, for rules that need one, such as `answer` or `reward_model.ground_truth`. A row where it
    is empty, null or NaN has no answer; a whole number has no decimals, so that 42.0 is 42. The built-in
    generators bring their own."""

    messages_column: Text | None = None
    """Column that holds a conversation, used instead of `promptColumn`: a list of {role, content}, or of {from, value} as in
    ShareGPT. The model writes the next message, and what judges it is shown all of them with their roles. Content in parts is
    joined, one to a line. A last message of the assistant is left out in the form of ShareGPT and where `answerColumn` names it,
    as `messages.-1.content` does; elsewhere such a row is dropped as malformed, as are rows with parts other than text."""

    template: LongText | None = None
    """Text with {column} in it, filled from the row, that becomes the user's message. Absent: the prompt column as it is."""

    limit: int | None = Field(default=None, ge=1)
    """Use the first this many prompts after shuffling. Absent: all."""

    shuffle_seed: int = Field(default=0, ge=0)
    """Seed of the order in which prompts are drawn; each epoch has an order of its own."""

    @property
    def suffix(self) -> str:
        """The end of the name of a file in source that says what it holds; empty where source is something else."""
        return next((suffix for suffix in DATA_SUFFIXES if self.source.endswith(suffix)), "")

    @property
    def is_generated(self) -> bool:
        """Whether the source is a built-in generator."""
        return self.source in GENERATORS

    @property
    def has_answers(self) -> bool:
        """Whether a row brings the true answer."""
        return self.is_generated or self.answer_column is not None


class Evaluation(Prompts):
    """Held-out prompts, answered greedily and scored by the run's preference.

    A judge or a ranker compares these answers with the true ones.
    """

    split: Text = "test"
    """Split of a Hub data set. For `arithmetic` and `letters`: train or test, which have no question in
    common."""

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
