"""From rows to prompts: template, chat template, token ids, and which rows are dropped on the way."""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from spinrun_api.spec import Order, Source
from spinrun_protocol.wire import Sample
from spinrun_worker.data.conversations import last_request, read_conversation
from spinrun_worker.data.encoding import MAX_CHARACTERS, Encoder, TextError
from spinrun_worker.data.order import shuffled
from spinrun_worker.data.rows import BATCH, DropReason, RowError, is_missing, number_of, require_column, text_of, value_at
from spinrun_worker.data.sources import Row, Table, open_source
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.reading import describe, reading
from spinrun_worker.records import Message, PromptRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one source."""

    source: Source
    """What the spec says of it."""

    records: tuple[PromptRecord, ...]
    """At least one prompt, in shuffled order."""

    dropped: Mapping[DropReason, int]
    """Rows that did not become a prompt. too_long: longer than data.maxPromptTokens. empty: no text. no_answer: no true answer,
    where the preference needs one. malformed: messages that are not a conversation, text that is not (half an emoji), or what the
    chat template or the tokenizer refuses."""

    ranks: tuple[float, ...] | None = None
    """For each prompt a number by which they are drawn within an epoch, the smallest first; None where the seed alone decides."""


def load_prompts(
    source: Source,
    *,
    block: str,
    seed: int,
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None,
    max_prompt_tokens: int,
    needs_answer: bool,
    order: Order | None = None,
) -> PromptSet:
    """Read a source of prompts and turn its rows into token ids.

    Args:
        source: What the spec says of it.
        block: Where it stands in the spec, such as data.prompts, for messages.
        seed: Of the order in which rows are read.
        tokenizer: The model's tokenizer.
        chat_template: The spec's chat template, which takes precedence over the tokenizer's.
        max_prompt_tokens: Longer prompts are dropped.
        needs_answer: Whether rows without a true answer are dropped.
        order: The column by which they are drawn within an epoch.

    Raises:
        ConfigurationError: The source is missing or gives no usable prompt. The message names the field.
        RunError: The source cannot be reached now.
    """
    table = open_source(source, block=block)
    if not len(table):
        raise ConfigurationError(f"{block}.source: {source.source} has no rows")
    reader = _RowReader(source, table, block, needs_answer=needs_answer)
    if order is not None:
        require_column(order.column, table, field="data.prompts.order.column")
    encoder = Encoder(tokenizer, chat_template)
    if source.messages_column is not None and not encoder.has_template:
        raise ConfigurationError(
            f"{block}.messagesColumn: the tokenizer has no chat template: set model.chatTemplate, or use promptColumn"
        )

    records: list[PromptRecord] = []
    dropped: Counter[DropReason] = Counter()
    examples: dict[DropReason, str] = {}
    for index, outcome in _prompts(table, source, reader, encoder, block, seed):
        if isinstance(outcome, PromptRecord):
            outcome = _of_fitting_length(outcome, max_prompt_tokens)
        if isinstance(outcome, RowError):
            dropped[outcome.reason] += 1
            examples.setdefault(outcome.reason, f"row {index}: {outcome}")
        else:
            records.append(outcome)
            if len(records) == source.limit:
                break
    shown = "; ".join(f"{count} {reason} ({examples[reason]})" for reason, count in dropped.most_common())
    if not records:
        remedy = ". Correct the rows, or name another model.chatTemplate or model.tokenizer" if dropped["malformed"] else ""
        raise ConfigurationError(f"{block}: no row of {source.source} is a usable prompt: {shown}{remedy}")
    questions = {"".join(record.text.split()).casefold() for record in records}
    if len(questions) > 1 and len({record.tokens for record in records}) == 1:
        raise ConfigurationError(
            f"{block}: all {len(records)} prompts have the same {len(records[0].tokens)} tokens: {encoder.where}, or the "
            "tokenizer, loses what they ask: set model.chatTemplate, or name another model.tokenizer"
        )
    if dropped:
        logger.warning("%s: %d rows dropped: %s", block, dropped.total(), shown)
    return PromptSet(source, tuple(records), dict(dropped), None if order is None else _ranks(records, order, block))


def _ranks(records: Sequence[PromptRecord], order: Order, block: str) -> tuple[float, ...]:
    """The numbers by which prompts are drawn. Raises ConfigurationError where no prompt has one."""
    numbers = [number_of(value_at(record.columns, order.column)) for record in records]
    missing = numbers.count(None)
    if missing == len(numbers):
        raise ConfigurationError(
            f"data.prompts.order.column: no prompt of {block} has a number in the column {order.column}, such as 3 or 0.5: name "
            "another column, or remove order"
        )
    if missing:
        logger.warning(
            "data.prompts.order: %d of %d prompts of %s have no number in the column %s: they come last in each epoch",
            missing,
            len(numbers),
            block,
            order.column,
        )
    sign = -1 if order.direction == "descending" else 1
    return tuple(math.inf if number is None else sign * number for number in numbers)


def check_disjoint(training: Iterable[PromptSet], test: PromptSet) -> int:
    """Count held-out prompts that are also trained on, by their token ids, and warn when there are any.

    Raises:
        ConfigurationError: There are some, and they and those that they repeat are generated: another split is then all it takes.
    """
    held_out = {record.tokens for record in test.records}
    shared: set[tuple[int, ...]] = set()
    for train in training:
        repeated = {record.tokens for record in train.records} & held_out
        if repeated and train.source.is_generated and train.source.source == test.source.source:
            raise ConfigurationError(
                f"{_shared(repeated, test)}: use the same config with split: train in data.prompts and split: test in "
                "data.evaluation"
            )
        shared |= repeated
    if shared:
        logger.warning("%s: the accuracy will look better than it is", _shared(shared, test))
    return sum(record.tokens in shared for record in test.records)


def _shared(tokens: Set[tuple[int, ...]], test: PromptSet) -> str:
    count = sum(record.tokens in tokens for record in test.records)
    return f"data.evaluation: {count} of {len(test.records)} held-out prompts are also trained on"


@dataclass(frozen=True)
class _Question:
    """What a row asks."""

    text: str
    """The user's (last) message."""
    messages: tuple[Message, ...]
    answer: str | None
    row: Row
    rendered: str = ""
    """What the model sees, after the chat template."""


def _prompts(
    table: Table, source: Source, reader: "_RowReader", encoder: Encoder, block: str, seed: int
) -> Iterator[tuple[int, "PromptRecord | RowError"]]:
    """Each row's number and what became of it, in shuffled order, a batch of rows at a time."""

    def read(row: Row) -> _Question | RowError:
        try:
            return _rendered(reader.read(row), encoder)
        except RowError as error:
            return error
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a row may hold anything, and costs no more than itself
            return RowError("malformed", describe(error))

    order = shuffled(len(table), "rows", seed)
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        with reading(f"{block}.source: rows of {source.source}", remedy="repair the data set, or name another"):
            rows = table.take(indices)
        questions = [read(row) for row in rows]
        encoded = iter(encoder.encode([item.rendered for item in questions if isinstance(item, _Question)]))
        for index, item in zip(indices, questions, strict=True):
            if not isinstance(item, _Question):
                yield index, item
                continue
            tokens = next(encoded)
            if isinstance(tokens, TextError):
                yield index, RowError("malformed", str(tokens))
            else:
                conversation = item.messages if source.messages_column is not None else ()
                yield index, PromptRecord(str(index), tokens, item.text, item.answer, item.row, conversation)


def _rendered(question: _Question, encoder: Encoder) -> _Question:
    """A question with the text that the model sees. Raises RowError when there is none that can be encoded, or sent on."""
    for text in (*(message["content"] for message in question.messages), question.answer or ""):
        _require_characters(text)
    if not encoder.has_template:
        return replace(question, rendered=question.text)
    try:
        rendered = encoder.render(question.messages)
    except TextError as error:
        raise RowError("malformed", str(error)) from error
    if len(rendered) > MAX_CHARACTERS:
        raise RowError("too_long", f"{len(rendered)} characters after the chat template")
    _require_characters(rendered)
    return replace(question, rendered=rendered)


def _require_characters(text: str) -> None:
    """JSON and CSV can hold half of a character (a lone surrogate), which no tokenizer and no other file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise RowError("malformed", f"holds half a character (U+{ord(half):04X}) at position {error.start}") from error


def _of_fitting_length(record: PromptRecord, max_prompt_tokens: int) -> "PromptRecord | RowError":
    if not record.tokens:
        return RowError("empty", "the prompt has no tokens")
    if len(record.tokens) > max_prompt_tokens:
        return RowError("too_long", f"{len(record.tokens)} tokens, data.maxPromptTokens is {max_prompt_tokens}")
    return record


class _RowReader:
    """Extracts question and answer from a row, as the block of the spec says."""

    def __init__(self, source: Source, table: Table, block: str, *, needs_answer: bool) -> None:
        self._block = block
        self._needs_answer = needs_answer
        self._messages_column = source.messages_column
        self._template = None if source.template is None else Template(source.template, table, field=f"{block}.template")
        self._prompt_column = source.prompt_column
        self._answer_column = source.answer_column
        self._is_answered = (source.answer_column or "").startswith(f"{source.messages_column}.-1.")
        if source.is_generated and self._answer_column is None:
            self._answer_column = "answer"
        if source.messages_column is not None and source.template is not None:
            raise ConfigurationError(f"{block}.template: is not used with messagesColumn: remove one of them")
        if needs_answer and self._answer_column is None:
            raise ConfigurationError(f"{block}.answerColumn: the preference compares with the true answer: name its column")
        if self._messages_column is not None:
            require_column(self._messages_column, table, field=f"{block}.messagesColumn")
        elif self._template is None:
            hint = "; a column with conversations belongs in messagesColumn"
            require_column(self._prompt_column, table, field=f"{block}.promptColumn", hint=hint)
        if self._answer_column is not None:
            require_column(self._answer_column, table, field=f"{block}.answerColumn")

    def read(self, row: Row) -> _Question:
        """The question of a row. Raises RowError when it holds none or, where one is needed, no answer."""
        answer = self._answer(row)
        if self._messages_column is not None:
            value: Any = value_at(row, self._messages_column)
            messages = read_conversation(value, is_answered=self._is_answered)
            if self._is_answered and len(messages) == len(value):
                answer = self._no_answer("the last message is not the assistant's")
            return _Question(last_request(messages), messages, answer, row)
        text = self._template.fill(row) if self._template else self._text(row, self._prompt_column, "promptColumn")
        if not text.strip():
            raise RowError("empty", "the prompt has no text")
        return _Question(text, ({"role": "user", "content": text},), answer, row)

    def _answer(self, row: Row) -> str | None:
        if self._answer_column is None:
            return None
        answer = self._text(row, self._answer_column, "answerColumn").strip()
        return answer or self._no_answer(f"column {self._answer_column} is empty")

    def _no_answer(self, reason: str) -> None:
        if self._needs_answer:
            raise RowError("no_answer", reason)

    def _text(self, row: Row, column: str, field: str) -> str:
        value = value_at(row, column)
        try:
            return text_of(value)
        except ValueError as error:
            hint = f": {_way_into(value, column)}" if isinstance(value, (list, dict)) else ""
            if hint and field == "promptColumn":
                hint += "; a list of messages belongs in messagesColumn"
            raise RowError("malformed", f"{self._block}.{field}: column {column} {error}{hint}") from error


def _way_into(value: "list[object] | dict[str, object]", column: str) -> str:
    within = 0 if isinstance(value, list) else next(iter(value), "field")
    return f"name what is inside, such as {column}.{within}"


def encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str, *, max_tokens: int, end: int | None = None) -> Sample:
    """A true answer as the sample that the model would have given: with its end token, or cut off at as many tokens as one.

    Args:
        tokenizer: The model's tokenizer.
        answer: The true answer.
        max_tokens: Tokens after which the answer is cut off, as a sample is.
        end: The end token, see `Encoder.end_of_answer`; None takes the one of the tokenizer's own chat template.

    Raises:
        ConfigurationError: The tokenizer cannot encode the answer, or there is no end token.
    """
    end = Encoder(tokenizer, None).end_of_answer(None) if end is None else end
    with reading(f"the true answer {answer[:80]!r} cannot be encoded", remedy="correct the answer, or name another tokenizer"):
        tokens = cast("list[int]", cast(Any, tokenizer)(answer, add_special_tokens=False)["input_ids"])
    is_whole = len(tokens) < max_tokens
    return Sample(tokens=tuple([*tokens, end][:max_tokens]), text=answer, finish_reason="stop" if is_whole else "length")


class Template:
    """Text with {column} in it. {{ and }} are literal braces, and so is {} or an unmatched brace."""

    def __init__(self, text: str, table: Table, *, field: str) -> None:
        """Check a template.

        Args:
            text: The template.
            table: The rows to fill it from.
            field: The spec's field, for messages.

        Raises:
            ConfigurationError: It names a column that does not exist, or none at all.
        """
        self._text = text
        names = [match[1] for match in _PLACEHOLDER.finditer(text) if match[1] is not None]
        if not names:
            raise ConfigurationError(f"{field}: names no {{column}}, so every prompt would be the same")
        for name in names:
            require_column(name, table, field=field, hint="; write {{ and }} for literal braces")

    def fill(self, row: Row) -> str:
        """The text with the row's values, never with their attributes. Raises RowError when one is missing."""
        return _PLACEHOLDER.sub(lambda match: match[0][0] if match[1] is None else self._value(row, match[1]), self._text)

    @staticmethod
    def _value(row: Row, column: str) -> str:
        value = value_at(row, column)
        if is_missing(value):
            raise RowError("empty", f"column {column} is empty")
        return str(value) if isinstance(value, (list, dict)) else text_of(value)
