"""From rows to prompts: template, chat template, token ids, and which rows are dropped on the way."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, cast

from spinrun_api.spec import Evaluation, Prompts
from spinrun_worker.data import arithmetic
from spinrun_worker.data.encoding import MAX_CHARACTERS, Encoder, TextError
from spinrun_worker.data.order import shuffled
from spinrun_worker.data.sources import Row, Table, open_source
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.reading import describe, reading
from spinrun_worker.records import PromptRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DropReason = Literal["too_long", "empty", "no_answer", "malformed"]

_BATCH = 1024
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one block of the spec."""

    source: Prompts
    """The block that they come from."""

    records: tuple[PromptRecord, ...]
    """At least one prompt, in shuffled order."""

    dropped: Mapping[DropReason, int]
    """Rows that did not become a prompt. too_long: longer than data.maxPromptTokens. empty: no text. no_answer: no true answer,
    where the preference needs one. malformed: messages that are not a conversation, text that is not (half an emoji), or what the
    chat template or the tokenizer refuses."""


def load_prompts(
    source: Prompts,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None,
    max_prompt_tokens: int,
    needs_answer: bool,
) -> PromptSet:
    """Read a block of prompts and turn its rows into token ids.

    Args:
        source: The spec's block.
        tokenizer: The model's tokenizer.
        chat_template: The spec's chat template, which takes precedence over the tokenizer's.
        max_prompt_tokens: Longer prompts are dropped.
        needs_answer: Whether rows without a true answer are dropped.

    Raises:
        ConfigurationError: The source is missing or gives no usable prompt. The message names the field.
        RunError: The source cannot be reached now.
    """
    block = "data.evaluation" if isinstance(source, Evaluation) else "data.prompts"
    table = open_source(source, block=block)
    if not len(table):
        raise ConfigurationError(f"{block}.source: {source.source} has no rows")
    reader = _RowReader(source, table.columns, block, needs_answer=needs_answer)
    encoder = Encoder(tokenizer, chat_template)
    if source.messages_column is not None and not encoder.has_template:
        raise ConfigurationError(
            f"{block}.messagesColumn: the tokenizer has no chat template: set model.chatTemplate, or use promptColumn"
        )

    records: list[PromptRecord] = []
    dropped: Counter[DropReason] = Counter()
    examples: dict[DropReason, str] = {}
    for index, outcome in _prompts(table, source, reader, encoder, block):
        if isinstance(outcome, PromptRecord):
            outcome = _of_fitting_length(outcome, max_prompt_tokens)
        if isinstance(outcome, _RowError):
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
    return PromptSet(source, tuple(records), dict(dropped))


def check_disjoint(train: PromptSet, test: PromptSet) -> int:
    """Count held-out prompts that are also trained on, by their token ids, and warn when there are any.

    Raises:
        ConfigurationError: There are some and both sets are generated: another split is then all it takes.
    """
    seen = {record.tokens for record in train.records}
    shared = sum(record.tokens in seen for record in test.records)
    message = f"data.evaluation: {shared} of {len(test.records)} held-out prompts are also trained on"
    if shared and train.source.source == test.source.source == arithmetic.SOURCE:
        raise ConfigurationError(
            f"{message}: use the same config with split: train in data.prompts and split: test in data.evaluation"
        )
    if shared:
        logger.warning("%s: the accuracy will look better than it is", message)
    return shared


class _RowError(ValueError):
    """A row that does not become a prompt."""

    def __init__(self, reason: DropReason, message: str) -> None:
        super().__init__(message)
        self.reason: DropReason = reason


@dataclass(frozen=True)
class _Question:
    """What a row asks."""

    text: str
    """The user's (last) message."""
    messages: list[dict[str, str]]
    answer: str | None
    row: Row
    rendered: str = ""
    """What the model sees, after the chat template."""


def _prompts(
    table: Table, source: Prompts, reader: "_RowReader", encoder: Encoder, block: str
) -> Iterator[tuple[int, "PromptRecord | _RowError"]]:
    """Each row's number and what became of it, in shuffled order, a batch of rows at a time."""

    def read(row: Row) -> _Question | _RowError:
        try:
            return _rendered(reader.read(row), encoder)
        except _RowError as error:
            return error
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a row may hold anything, and costs no more than itself
            return _RowError("malformed", describe(error))

    order = shuffled(len(table), "rows", source.shuffle_seed)
    for start in range(0, len(order), _BATCH):
        indices = order[start : start + _BATCH]
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
                yield index, _RowError("malformed", str(tokens))
            else:
                yield index, PromptRecord(str(index), tokens, item.text, item.answer, item.row)


def _rendered(question: _Question, encoder: Encoder) -> _Question:
    """A question with the text that the model sees. Raises _RowError when there is none that can be encoded, or sent on."""
    for text in (*(message["content"] for message in question.messages), question.answer or ""):
        _require_characters(text)
    if not encoder.has_template:
        return replace(question, rendered=question.text)
    try:
        rendered = encoder.render(question.messages)
    except TextError as error:
        raise _RowError("malformed", str(error)) from error
    if len(rendered) > MAX_CHARACTERS:
        raise _RowError("too_long", f"{len(rendered)} characters after the chat template")
    _require_characters(rendered)
    return replace(question, rendered=rendered)


def _require_characters(text: str) -> None:
    """JSON and CSV can hold half of a character (a lone surrogate), which no tokenizer and no other file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise _RowError("malformed", f"holds half a character (U+{ord(half):04X}) at position {error.start}") from error


def _of_fitting_length(record: PromptRecord, max_prompt_tokens: int) -> "PromptRecord | _RowError":
    if not record.tokens:
        return _RowError("empty", "the prompt has no tokens")
    if len(record.tokens) > max_prompt_tokens:
        return _RowError("too_long", f"{len(record.tokens)} tokens, data.maxPromptTokens is {max_prompt_tokens}")
    return record


class _RowReader:
    """Extracts question and answer from a row, as the block of the spec says."""

    def __init__(self, source: Prompts, columns: Sequence[str], block: str, *, needs_answer: bool) -> None:
        self._block = block
        self._needs_answer = needs_answer
        self._messages_column = source.messages_column
        self._template = None if source.template is None else Template(source.template, columns, field=f"{block}.template")
        self._prompt_column = source.prompt_column
        self._answer_column = source.answer_column
        if source.source == arithmetic.SOURCE and self._answer_column is None:
            self._answer_column = "answer"
        if source.messages_column is not None and source.template is not None:
            raise ConfigurationError(f"{block}.template: is not used with messagesColumn: remove one of them")
        if needs_answer and self._answer_column is None:
            raise ConfigurationError(f"{block}.answerColumn: the preference compares with the true answer: name its column")
        if self._messages_column is not None:
            _require(self._messages_column, columns, f"{block}.messagesColumn")
        elif self._template is None:
            _require(self._prompt_column, columns, f"{block}.promptColumn")
        if self._answer_column is not None:
            _require(self._answer_column, columns, f"{block}.answerColumn")

    def read(self, row: Row) -> _Question:
        """The question of a row. Raises _RowError when it holds none or, where one is needed, no answer."""
        answer = self._answer(row)
        if self._messages_column is not None:
            messages = _conversation(row.get(self._messages_column))
            return _Question(messages[-1]["content"], messages, answer, row)
        text = self._template.fill(row) if self._template else self._text(row, self._prompt_column, "promptColumn")
        if not text.strip():
            raise _RowError("empty", "the prompt has no text")
        return _Question(text, [{"role": "user", "content": text}], answer, row)

    def _answer(self, row: Row) -> str | None:
        if self._answer_column is None:
            return None
        answer = self._text(row, self._answer_column, "answerColumn").strip()
        if not answer and self._needs_answer:
            raise _RowError("no_answer", f"column {self._answer_column} is empty")
        return answer or None

    def _text(self, row: Row, column: str, field: str) -> str:
        value = row.get(column)
        if isinstance(value, (list, dict)):
            hint = "; a list of messages belongs in messagesColumn" if field == "promptColumn" else ""
            kind = type(cast(object, value)).__name__
            raise ConfigurationError(f"{self._block}.{field}: column {column} holds a {kind}, not text{hint}")
        return "" if value is None else str(value)


def encode_answer(
    tokenizer: "PreTrainedTokenizerBase", answer: str, *, max_tokens: int, end: int | None = None
) -> tuple[int, ...]:
    """Token ids of a true answer as the model would have given it, including the end token.

    Args:
        tokenizer: The model's tokenizer.
        answer: The true answer.
        max_tokens: Tokens after which the answer is cut, as a sample is.
        end: The end token, see `Encoder.end_of_answer`; None takes the one of the tokenizer's own chat template.

    Raises:
        ConfigurationError: The tokenizer cannot encode the answer, or there is no end token.
    """
    end = Encoder(tokenizer, None).end_of_answer(None) if end is None else end
    with reading(f"the true answer {answer[:80]!r} cannot be encoded", remedy="correct the answer, or name another tokenizer"):
        tokens = cast("list[int]", cast(Any, tokenizer)(answer, add_special_tokens=False)["input_ids"])
    return tuple([*tokens, end][:max_tokens])


class Template:
    """Text with {column} in it. {{ and }} are literal braces, and so is {} or an unmatched brace."""

    def __init__(self, text: str, columns: Sequence[str], *, field: str) -> None:
        """Check a template.

        Args:
            text: The template.
            columns: The columns that rows have.
            field: The spec's field, for messages.

        Raises:
            ConfigurationError: It names a column that does not exist, or none at all.
        """
        self._text = text
        names = [match[1] for match in _PLACEHOLDER.finditer(text) if match[1] is not None]
        if not names:
            raise ConfigurationError(f"{field}: names no {{column}}, so every prompt would be the same")
        for name in names:
            _require(name, columns, field, hint="; write {{ and }} for literal braces")

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text with the row's values: only whole values, never their attributes. Raises _RowError when one is missing."""
        return _PLACEHOLDER.sub(lambda match: match[0][0] if match[1] is None else self._value(row, match[1]), self._text)

    @staticmethod
    def _value(row: Mapping[str, Any], column: str) -> str:
        value = row.get(column)
        if value is None:
            raise _RowError("empty", f"column {column} is empty")
        return str(value)


def _conversation(value: object) -> list[dict[str, str]]:
    """The messages of a row, the last of which the model is to answer. Raises _RowError when they are not such a conversation."""
    if not isinstance(value, list) and value is not None:
        raise _RowError("malformed", f"must be a list of messages, got {type(value).__name__}")
    messages: list[dict[str, str]] = []
    for message in cast("list[object]", value or []):
        fields = cast("dict[str, object]", message) if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise _RowError("malformed", f"a message must have role and content as text, got {str(cast(object, message))[:80]}")
        messages.append({"role": role, "content": content})
    if not messages or not messages[-1]["content"].strip():
        raise _RowError("empty", "there is no message to answer")
    if messages[-1]["role"] == "assistant":
        raise _RowError("malformed", "the last message is the assistant's: leave it out, the model is to write it")
    return messages


def _require(column: str, columns: Sequence[str], field: str, *, hint: str = "") -> None:
    if column in columns:
        return
    close = get_close_matches(column, columns, n=1)
    guess = f" Did you mean {close[0]}?" if close else ""
    raise ConfigurationError(f"{field}: there is no column {column!r}.{guess} The columns are: {', '.join(columns)}{hint}")
