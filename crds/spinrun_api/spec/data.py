"""The block `data`."""

from typing import Literal

from pydantic import Field

from spinrun_api.base import ApiModel, rule
from spinrun_api.spec.types import LongText, Text

DATA_SUFFIXES = (".jsonl", ".parquet", ".csv", ".json", ".jsonl.gz", ".csv.gz", ".json.gz")
"""Ends of the names of files that prompts are read from."""


GENERATORS = ("arithmetic", "letters")
"""Sources that are built in, and bring their own answers."""


class Rows(ApiModel):
    """Which rows of a source are used, and how a row becomes a prompt."""

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


# A base class of its own, and the last of its heirs, so that `source` is the first field of their blocks.
class _Named(ApiModel):
    source: Text
    """A Hub data set id, the absolute path of a file on the ledger volume or in the image, or `arithmetic` or `letters`, built-in
    generators that need nothing from outside. A file ends in .jsonl, .json (a list of objects, also one under the key data), .csv
    or .parquet; all but .parquet also with .gz."""


class Source(Rows, _Named):
    """Where prompts come from and how a row becomes a prompt."""

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


class MixedSource(Source):
    """One of several sources of prompts."""

    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Share of the prompts that come from this source, as a part of the sum of all weights. It does not depend on how many rows
    the source has: a small one begins its next epoch earlier."""


class Order(ApiModel):
    """The order of prompts within an epoch."""

    column: Text
    """Column that holds a number, also as text, such as a difficulty or a pass rate measured beforehand. Prompts with the same
    number are in an order of their own in each epoch; those without a number come last."""

    direction: Literal["ascending", "descending"] = "ascending"
    """ascending: the smallest number first. descending: the largest first."""


class _NamedOrMixed(ApiModel):
    source: Text | None = None
    """A Hub data set id, the absolute path of a file on the ledger volume or in the image, or `arithmetic` or `letters`, built-in
    generators that need nothing from outside. A file ends in .jsonl, .json (a list of objects, also one under the key data), .csv
    or .parquet; all but .parquet also with .gz."""

    sources: list[MixedSource] | None = Field(default=None, min_length=1, max_length=16)
    """In place of `source`, and of all that says how its rows become prompts: several sources, each with that of its own, whose
    prompts are mixed by weight. The order is the same in every attempt: after any number of prompts, each source has given its
    share, to within as many prompts as there are sources."""


_OF_ROWS = ["config", "answerColumn", "messagesColumn", "template", "limit"]
"""What a source may say of its rows and has no default."""

# Templates are long: to compare all with all could cost the API server more than it allows a rule. Python compares them too.
_ARE_EQUAL = " && ".join(
    ["!has(other.template)"]
    + ["one.source == other.source", "one.split == other.split", "one.promptColumn == other.promptColumn"]
    + [
        f"has(one.{name}) == has(other.{name}) && (!has(one.{name}) || one.{name} == other.{name})"
        for name in _OF_ROWS
        if name != "template"
    ]
)


def _repeated(prompts: "Prompts") -> str:
    """Which of its sources are equal, their weights aside."""
    places: dict[str, str] = {}
    repeated: list[str] = []
    for place, source in prompts.each.items():
        first = places.setdefault(source.model_copy(update={"weight": 1.0}).model_dump_json(), place)
        repeated += [f"{place} is {first}"] if first != place else []
    return ", ".join(repeated)


class Prompts(Rows, _NamedOrMixed):
    """Where prompts come from and how a row becomes a prompt."""

    shuffle_seed: int = Field(default=0, ge=0)
    """Seed of the order in which prompts are drawn; each epoch has an order of its own."""

    order: Order | None = None
    """Draw the prompts of an epoch by the numbers in a column, such as easy ones first; of several sources, each one's. Absent:
    in an order that only the seed decides."""

    @rule(cel="has(self.source) != has(self.sources)", message="exactly one of source and sources must be set")
    def _source_or_sources(self) -> bool:
        return (self.source is None) != (self.sources is None)

    @rule(
        cel="!has(self.sources) || ("
        + " && ".join(f"!has(self.{name})" for name in _OF_ROWS)
        + " && (!has(self.split) || self.split == 'train') && (!has(self.promptColumn) || self.promptColumn == 'prompt'))",
        message="with sources, each of them says how its own rows become prompts: move config, split, promptColumn, "
        "answerColumn, messagesColumn, template and limit there",
    )
    def _sources_say_what_they_are(self) -> bool:
        beside = (self.config, self.answer_column, self.messages_column, self.template, self.limit)
        return self.sources is None or (not any(beside) and (self.split, self.prompt_column) == ("train", "prompt"))

    @rule(
        cel=f"!has(self.sources) || self.sources.all(one, has(one.template) || self.sources.exists_one(other, {_ARE_EQUAL}))",
        message="the same source is named twice: give one of them the weight of both, and remove the other",
        culprit=_repeated,
    )
    def _sources_differ(self) -> bool:
        return self.sources is None or not _repeated(self)

    @property
    def each(self) -> dict[str, MixedSource]:
        """The sources, by where they stand in the spec; a single one has the weight 1."""
        if self.sources is not None:
            return {f"data.prompts.sources[{index}]": source for index, source in enumerate(self.sources)}
        fields = {name: getattr(self, name) for name in Source.model_fields}
        return {"data.prompts": MixedSource.model_validate(fields)}

    @property
    def has_answers(self) -> bool:
        """Whether every row brings the true answer."""
        return all(source.has_answers for source in self.each.values())


class Evaluation(Source):
    """Held-out prompts, answered greedily and scored by the run's preference.

    A judge or a ranker compares these answers with the true ones.
    """

    split: Text = "test"
    """Split of a Hub data set. For `arithmetic` and `letters`: train or test, which have no question in
    common."""

    shuffle_seed: int = Field(default=0, ge=0)
    """Seed of the order in which rows are read, which matters with `limit`."""

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
