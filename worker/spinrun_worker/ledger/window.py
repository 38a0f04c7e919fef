"""A window's Parquet files: samples.parquet, with a row for each prompt, pairs.parquet, with a row for each pair, and
rates.parquet, with a row for each prompt whose pass rate is known."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from spinrun_protocol.ledger import FileEntry
from spinrun_protocol.wire import Sample
from spinrun_worker.ledger import durable
from spinrun_worker.ledger.errors import TornError
from spinrun_worker.ledger.files import open_regular, write_file
from spinrun_worker.records import ByToken, Message, Pair, PassRate, PassRates, PromptRecord, ScoredGroup, is_message

# pyarrow has no types.
Schema = Any
DataType = Any
Row = dict[str, Any]
Record = TypeVar("Record")


def _required(name: str, kind: DataType) -> Any:
    return pa.field(name, kind, nullable=False)


_TOKENS = pa.list_(_required("element", pa.int32()))
_LOGPROBS = pa.list_(_required("element", pa.float64()))
_SAMPLE = [
    _required("tokens", _TOKENS),
    _required("text", pa.string()),
    _required("finish_reason", pa.string()),
    pa.field("reward", pa.float64()),
]


def _samples_schema(sample: Sequence[Any], *others: Any) -> Schema:
    return pa.schema(
        [
            _required("prompt_id", pa.string()),
            _required("prompt_tokens", _TOKENS),
            _required("prompt_text", pa.string()),
            pa.field("answer", pa.string()),
            _required("columns", pa.string()),  # JSON
            _required("samples", pa.list_(_required("element", pa.struct(sample)))),
            *others,
        ]
    )


_CONVERSATION = pa.field("conversation", pa.string())  # JSON
SAMPLES_SCHEMA = _samples_schema([*_SAMPLE, pa.field("token_logprobs", _LOGPROBS)], _CONVERSATION)
_OLDER_SAMPLES_SCHEMAS = (_samples_schema(_SAMPLE, _CONVERSATION), _samples_schema(_SAMPLE))
"""What versions wrote that had no log-probs by token, and before that kept the last message of a conversation only: a run of
theirs can continue."""
_BY_TOKEN = pa.struct([_required("chosen", _LOGPROBS), _required("rejected", _LOGPROBS)])
_LOGPROBS_BY_TOKEN = ("sampled_by_token", "policy_by_token", "reference_by_token")
_SUMS_SCHEMA = pa.schema(
    [
        _required("prompt_id", pa.string()),
        _required("prompt", _TOKENS),
        _required("chosen", _TOKENS),
        _required("rejected", _TOKENS),
        _required("chosen_reward", pa.float64()),
        _required("rejected_reward", pa.float64()),
        pa.field("reference_chosen", pa.float64()),
        pa.field("reference_rejected", pa.float64()),
    ]
)
"""What versions wrote that had no log-probs by token."""
PAIRS_SCHEMA = pa.schema([*_SUMS_SCHEMA, *(pa.field(name, _BY_TOKEN) for name in _LOGPROBS_BY_TOKEN)])
RATES_SCHEMA = pa.schema([_required("row", pa.string()), _required("epoch", pa.int64()), _required("rate", pa.float64())])

# Rows converted to columns at once: 1024 prompts with 8 samples of 1024 tokens are 32 MB of token ids.
_ROWS = 1024


def write_samples(path: Path, groups: Sequence[ScoredGroup]) -> FileEntry:
    """Write a window's samples with their rewards. Raises as write_file does.

    A prompt's columns are stored as JSON; what JSON lacks, such as a date, as text. Characters that UTF-8 lacks become question
    marks.
    """
    return _write(path, SAMPLES_SCHEMA, groups, _group_row)


def read_samples(path: Path) -> list[ScoredGroup]:
    """Read a window's samples.

    Raises:
        TornError: The file is missing or damaged.
    """
    return _read(path, (SAMPLES_SCHEMA, *_OLDER_SAMPLES_SCHEMAS), _group)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> FileEntry:
    """Write a window's pairs; every number will be read back exactly. Raises as write_file does."""
    return _write(path, PAIRS_SCHEMA, pairs, _pair_row)


def read_pairs(path: Path) -> list[Pair]:
    """Read a window's pairs.

    Raises:
        TornError: The file is missing or damaged.
    """
    return _read(path, (PAIRS_SCHEMA, _SUMS_SCHEMA), _pair)


def write_rates(path: Path, rates: PassRates) -> FileEntry:
    """Write pass rates, some bytes for each; every number will be read back exactly. Raises as write_file does."""
    rows = sorted(rates)  # the same rates give the same bytes
    known = [rates[row] for row in rows]
    columns = {"row": rows, "epoch": [each.epoch for each in known], "rate": [each.rate for each in known]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=RATES_SCHEMA), sink, compression="zstd")
    return write_file(path, [sink.getvalue()])


def read_rates(path: Path) -> dict[str, PassRate]:
    """Read pass rates.

    Raises:
        TornError: The file is missing or damaged.
    """
    found = _read(path, (RATES_SCHEMA,), _rate)
    rates = dict(found)
    if len(rates) < len(found):
        raise TornError(f"{path} is damaged: it has several pass rates of one prompt")
    return rates


def _rate(row: Row) -> tuple[str, PassRate]:
    """Raises ValueError for what is not a pass rate."""
    if not 0 <= row["rate"] <= 1 or row["epoch"] < 0:
        raise ValueError(f"prompt {row['row']} has the pass rate {row['rate']} in epoch {row['epoch']}")
    return row["row"], PassRate(row["rate"], row["epoch"])


def _group_row(group: ScoredGroup) -> Row:
    prompt = group.prompt
    return {
        "prompt_id": _text(prompt.id),
        "prompt_tokens": prompt.tokens,
        "prompt_text": _text(prompt.text),
        "answer": None if prompt.answer is None else _text(prompt.answer),
        "columns": json.dumps(prompt.columns, default=str),
        "samples": [
            {
                "tokens": sample.tokens,
                "text": _text(sample.text),
                "finish_reason": sample.finish_reason,
                "reward": reward,
                "token_logprobs": sample.token_logprobs,
            }
            for sample, reward in zip(group.samples, group.rewards, strict=True)
        ],
        "conversation": _text(json.dumps(prompt.conversation, ensure_ascii=False)) if prompt.conversation else None,
    }


def _text(text: str) -> str:
    """The text without lone surrogates, which data sets and JSON may contain and UTF-8 may not."""
    return text.encode(errors="replace").decode()


def _group(row: Row) -> ScoredGroup:
    prompt = PromptRecord(
        id=row["prompt_id"],
        tokens=tuple(row["prompt_tokens"]),
        text=row["prompt_text"],
        answer=row["answer"],
        columns=_columns(row["columns"]),
        conversation=_conversation(row.get("conversation")),
    )
    samples = tuple(
        Sample(
            tokens=sample["tokens"],
            text=sample["text"],
            finish_reason=sample["finish_reason"],
            token_logprobs=sample.get("token_logprobs"),
        )
        for sample in row["samples"]
    )
    return ScoredGroup(prompt, samples, tuple(sample["reward"] for sample in row["samples"]))


def _conversation(content: str | None) -> tuple[Message, ...]:
    """The messages in a row; none in rows of single texts, and of versions that did not keep them. Raises ValueError."""
    try:
        messages = json.loads(content) if content is not None else []
    except RecursionError as error:
        raise ValueError("a conversation is nested too deeply") from error
    if not isinstance(messages, list) or not all(is_message(each) for each in cast("list[object]", messages)):
        raise ValueError(f"a conversation must be a list of messages with role and content, got {str(content)[:80]}")
    return tuple(cast("list[Message]", messages))


def _columns(text: str) -> dict[str, Any]:
    """A prompt's columns. Raises ValueError for anything but the JSON of a mapping."""
    try:
        columns = json.loads(text)
    except RecursionError as error:
        raise ValueError("columns are nested too deeply") from error
    if not isinstance(columns, dict):
        raise ValueError(f"columns are not a mapping, but a {type(columns).__name__}")
    return columns


def _pair_row(pair: Pair) -> Row:
    return {
        "prompt_id": _text(pair.prompt_id),
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "chosen_reward": pair.chosen_reward,
        "rejected_reward": pair.rejected_reward,
        "reference_chosen": pair.reference_chosen,
        "reference_rejected": pair.reference_rejected,
        **{name: None if (values := getattr(pair, name)) is None else asdict(values) for name in _LOGPROBS_BY_TOKEN},
    }


def _pair(row: Row) -> Pair:
    tokens: Row = {name: tuple(row[name]) for name in ("prompt", "chosen", "rejected")}
    logprobs: Row = {name: _by_token(row.get(name), tokens) for name in _LOGPROBS_BY_TOKEN}
    return Pair(**row | tokens | logprobs)


def _by_token(values: Row | None, tokens: Row) -> ByToken | None:
    """Log-probs of a pair's tokens. Raises ValueError where there are more or fewer than tokens."""
    if values is None:
        return None
    by_token = ByToken(tuple(values["chosen"]), tuple(values["rejected"]))
    if (len(by_token.chosen), len(by_token.rejected)) != (len(tokens["chosen"]), len(tokens["rejected"])):
        raise ValueError("a pair has log-probs of more or fewer tokens than it has")
    return by_token


def _write(path: Path, schema: Schema, records: Sequence[Record], to_row: Callable[[Record], Row]) -> FileEntry:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(records), _ROWS):
            rows = [to_row(record) for record in records[start : start + _ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return write_file(path, [sink.getvalue()])


def _read(path: Path, schemas: Sequence[Schema], from_row: Callable[[Row], Record]) -> list[Record]:
    descriptor = open_regular(path)
    if descriptor is None:
        raise TornError(f"{path} is missing")
    try:
        with os.fdopen(descriptor, "rb") as source, pq.ParquetFile(source) as file:
            if not any(file.schema_arrow.equals(schema) for schema in schemas):
                raise TornError(f"{path} has other columns than this version of SpinRun writes: {file.schema_arrow.names}")
            return [from_row(row) for batch in file.iter_batches(_ROWS) for row in batch.to_pylist()]
    except (ValueError, pa.ArrowException) as error:
        raise TornError(f"{path} is damaged: {error}") from error
    except OSError as error:
        # This is how pyarrow reports a damaged file; an error of the volume has a number.
        if error.errno is None:
            raise TornError(f"{path} is damaged: {error}") from error
        with durable.unavailable(path, "read"):
            raise
