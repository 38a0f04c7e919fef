"""Samples and pairs are read back exactly as they were written."""

import math
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_protocol.wire import Sample
from spinrun_worker.ledger import (
    TornError,
    hash_file,
    read_pairs,
    read_rates,
    read_samples,
    write_pairs,
    write_rates,
    write_samples,
)
from spinrun_worker.ledger.window import _SAMPLE, RATES_SCHEMA, SAMPLES_SCHEMA
from spinrun_worker.records import ByToken, Pair, PassRate, PromptRecord, ScoredGroup

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple)
numbers = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
logprobs = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8).map(tuple)
samples = st.builds(
    Sample,
    tokens=tokens,
    text=st.text(),
    finish_reason=st.sampled_from(["stop", "length"]),
    token_logprobs=st.none() | logprobs,
)
messages = st.fixed_dictionaries(
    {"role": st.text(), "content": st.text()}, optional={"tool_calls": st.lists(json_values, max_size=2), "name": st.text()}
)
prompts = st.builds(
    PromptRecord,
    id=st.text(),
    tokens=tokens,
    text=st.text(),
    answer=st.none() | st.text(),
    columns=st.dictionaries(st.text(), json_values, max_size=3),
    conversation=st.lists(messages, max_size=3).map(tuple),
)
groups = st.builds(
    lambda prompt, scored: ScoredGroup(prompt, tuple(sample for sample, _ in scored), tuple(reward for _, reward in scored)),
    prompts,
    st.lists(st.tuples(samples, st.none() | numbers), max_size=4),
)


def by_token(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> st.SearchStrategy[ByToken | None]:
    """Log-probs of each token, or none."""
    finite = st.floats(allow_nan=False, allow_infinity=False)
    sides = [st.lists(finite, min_size=len(side), max_size=len(side)).map(tuple) for side in (chosen, rejected)]
    return st.none() | st.builds(ByToken, *sides)


@st.composite
def some_pairs(draw: st.DrawFn) -> Pair:
    chosen, rejected = draw(tokens), draw(tokens)
    return Pair(
        prompt_id=draw(st.text()),
        prompt=draw(tokens),
        chosen=chosen,
        rejected=rejected,
        chosen_reward=draw(numbers),
        rejected_reward=draw(numbers),
        reference_chosen=draw(st.none() | numbers),
        reference_rejected=draw(st.none() | numbers),
        sampled_by_token=draw(by_token(chosen, rejected)),
        policy_by_token=draw(by_token(chosen, rejected)),
        reference_by_token=draw(by_token(chosen, rejected)),
    )


pairs = some_pairs()


@given(groups=st.lists(groups, max_size=5))
@settings(max_examples=100, deadline=None)
def test_samples_are_read_back_exactly(tmp_path_factory, groups):
    path = tmp_path_factory.mktemp("window") / "samples.parquet"

    entry = write_samples(path, groups)

    assert read_samples(path) == groups
    assert entry == hash_file(path)


@given(pairs=st.lists(pairs, max_size=8))
@settings(max_examples=100, deadline=None)
def test_pairs_are_read_back_exactly(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("window") / "pairs.parquet"

    entry = write_pairs(path, pairs)

    read = read_pairs(path)
    assert read == pairs
    assert [math.copysign(1, pair.chosen_reward) for pair in read] == [math.copysign(1, pair.chosen_reward) for pair in pairs]
    assert entry == hash_file(path)


def pair(number: int, **values: float) -> Pair:
    fields: dict[str, Any] = {"chosen_reward": 1.0, "rejected_reward": 0.0} | values
    return Pair(prompt_id=f"p{number}", prompt=(1, 2), chosen=(3, number), rejected=(4,), **fields)


def test_windows_larger_than_a_row_group_keep_their_order(tmp_path):
    pairs = [pair(number) for number in range(3000)]

    write_pairs(tmp_path / "pairs.parquet", pairs)

    assert read_pairs(tmp_path / "pairs.parquet") == pairs


def test_infinite_and_undefined_rewards_survive(tmp_path):
    write_pairs(
        tmp_path / "pairs.parquet", [pair(0, chosen_reward=math.inf, rejected_reward=-math.inf, reference_chosen=math.nan)]
    )

    (read,) = read_pairs(tmp_path / "pairs.parquet")
    assert (read.chosen_reward, read.rejected_reward) == (math.inf, -math.inf)
    assert read.reference_chosen is not None
    assert math.isnan(read.reference_chosen)
    assert read.reference_rejected is None


def group(text: str = "", **columns: object) -> ScoredGroup:
    prompt = PromptRecord(id="p", tokens=(1,), text=text, columns=columns)
    return ScoredGroup(prompt, (Sample(tokens=(5,), text=text, finish_reason="stop"),), (None,))


def test_columns_that_json_does_not_have_become_text(tmp_path):
    write_samples(tmp_path / "s", [group(day=date(2026, 1, 2), raw=b"x", number=1)])

    assert read_samples(tmp_path / "s")[0].prompt.columns == {"day": "2026-01-02", "raw": "b'x'", "number": 1}


def test_text_that_utf8_does_not_have_is_written_all_the_same(tmp_path):
    write_samples(tmp_path / "s", [group("half an emoji: \ud83d", column="\ud83d")])

    (read,) = read_samples(tmp_path / "s")
    assert read.prompt.text == read.samples[0].text == "half an emoji: ?"
    assert read.prompt.columns == {"column": "\ud83d"}


def test_half_an_emoji_in_a_conversation_is_written_all_the_same(tmp_path):
    prompt = PromptRecord("p", (1,), "x", conversation=({"role": "user", "content": "\ud83d"},))
    write_samples(tmp_path / "s", [ScoredGroup(prompt, (), ())])

    assert read_samples(tmp_path / "s")[0].prompt.conversation == ({"role": "user", "content": "?"},)


def rewritten(path: Path, **columns: object) -> None:
    """The file with these columns changed, or taken out where they are None."""
    table = pq.read_table(path)
    for name, value in columns.items():
        at = table.schema.get_field_index(name)
        table = table.remove_column(at)
        if value is not None:
            table = table.add_column(at, name, [[value] * len(table)])
    pq.write_table(table, path)


def test_window_from_before_conversations_were_kept_is_read_as_single_texts(tmp_path):
    conversation = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
    prompt = PromptRecord("p", (1,), "hi", conversation=conversation)
    write_samples(tmp_path / "s", [ScoredGroup(prompt, (), ())])
    assert read_samples(tmp_path / "s")[0].prompt.messages == conversation

    rewritten(tmp_path / "s", conversation=None, samples=None)
    table = pq.read_table(tmp_path / "s")
    samples_of_then = pa.array([[]], pa.list_(pa.field("element", pa.struct(_SAMPLE), nullable=False)))
    pq.write_table(
        table.append_column(pa.field("samples", samples_of_then.type, nullable=False), samples_of_then), tmp_path / "s"
    )

    assert read_samples(tmp_path / "s")[0].prompt.messages == ({"role": "user", "content": "hi"},)


def test_pairs_from_before_log_probs_by_token_are_read_without(tmp_path):
    pair = Pair("p", (1,), (2, 3), (4,), 1.0, 0.0, -2.0, -3.0, ByToken((-1.0, -1.0), (-3.0,)))
    write_pairs(tmp_path / "p", [pair])

    rewritten(tmp_path / "p", sampled_by_token=None, policy_by_token=None, reference_by_token=None)

    assert read_pairs(tmp_path / "p") == [replace(pair, sampled_by_token=None)]


def test_log_probs_of_more_or_fewer_tokens_than_a_pair_has_are_damaged(tmp_path):
    write_pairs(tmp_path / "p", [Pair("p", (1,), (2, 3), (4,), 1.0, 0.0, policy_by_token=ByToken((-1.0,), (-3.0,)))])

    with pytest.raises(TornError, match="is damaged: a pair has log-probs of more or fewer tokens than it has"):
        read_pairs(tmp_path / "p")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "3",
        "null",
        "{}",
        "[" * 100_000,
        '["hi"]',
        '[{"role": "user"}]',
        '[{"role": 1, "content": "hi"}]',
        '[{"role": "user", "content": "hi", "tool_calls": 3}]',
    ],
    ids=lambda content: content[:60] or "empty",
)
def test_what_is_not_a_conversation_is_damaged(tmp_path, content):
    write_samples(tmp_path / "s", [group("hi")])
    rewritten(tmp_path / "s", conversation=content)

    with pytest.raises(TornError, match="is damaged"):
        read_samples(tmp_path / "s")


def test_same_window_is_the_same_file(tmp_path):
    groups = [group(f"text {number}") for number in range(50)]

    assert write_samples(tmp_path / "one", groups).xxh3_128 == write_samples(tmp_path / "two", groups).xxh3_128


def test_files_are_plain_parquet_for_other_tools(tmp_path):
    write_pairs(tmp_path / "pairs.parquet", [pair(0), pair(1)])

    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table["chosen"].to_pylist() == [[3, 0], [3, 1]]
    assert str(table.schema.field("chosen").type) == "list<element: int32 not null>"
    assert str(table.schema.field("reference_chosen").type) == "double"
    assert pq.ParquetFile(tmp_path / "pairs.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_token_id_beyond_32_bits_is_refused(tmp_path):
    with pytest.raises((ValueError, OverflowError)):
        write_pairs(tmp_path / "pairs.parquet", [pair(2**31)])


@pytest.mark.parametrize("read", [read_pairs, read_samples, read_rates])
@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"x" * 1000, b"PAR1" + b"\0" * 100 + b"PAR1"], ids=["empty", "short", "text", "no footer"]
)
def test_damaged_file_is_torn(tmp_path, read, content):
    (tmp_path / "x.parquet").write_bytes(content)

    with pytest.raises(TornError, match=r"x\.parquet is damaged"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("position", range(4, 600, 40))
def test_bytes_flipped_within_a_file_never_escape_as_another_error(tmp_path, position):
    write_pairs(tmp_path / "x.parquet", [pair(number) for number in range(20)])
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[position : position + 4] = bytes(byte ^ 0xFF for byte in content[position : position + 4])
    (tmp_path / "x.parquet").write_bytes(content)

    with suppress(TornError):  # not every byte is read
        assert isinstance(read_pairs(tmp_path / "x.parquet"), list)


def test_other_columns_are_torn(tmp_path):
    write_pairs(tmp_path / "x.parquet", [pair(0)])

    with pytest.raises(TornError, match="has other columns"):
        read_samples(tmp_path / "x.parquet")


@pytest.mark.parametrize("columns", ["[" * 100_000, "x", "[1]", "null", "9" * 5000], ids=["deep", "text", "list", "null", "long"])
def test_columns_that_are_not_an_object_are_torn(tmp_path, columns):
    write_samples(tmp_path / "s", [group()])
    rows = pq.read_table(tmp_path / "s").to_pylist()
    rows[0]["columns"] = columns
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), tmp_path / "s")

    with pytest.raises(TornError, match="s is damaged"):
        read_samples(tmp_path / "s")


def test_missing_file_is_torn(tmp_path):
    with pytest.raises(TornError, match="is missing"):
        read_pairs(tmp_path / "pairs.parquet")


# --- pass rates -----------------------------------------------------------------------------------------------------------

rates = st.dictionaries(st.text(st.characters(codec="utf-8")), st.builds(PassRate, st.floats(0, 1), st.integers(0, 2**40)))


@given(rates=rates)
@settings(max_examples=50, deadline=None)
def test_pass_rates_are_read_back_exactly_and_give_the_same_bytes_in_any_order(tmp_path_factory, rates):
    folder = tmp_path_factory.mktemp("window")

    entry = write_rates(folder / "rates.parquet", rates)
    other = write_rates(folder / "other.parquet", dict(reversed(rates.items())))

    assert read_rates(folder / "rates.parquet") == rates
    assert entry.xxh3_128 == other.xxh3_128


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"row": ["a"], "epoch": [0], "rate": [1.5]}, r"damaged: prompt a has the pass rate 1\.5 in epoch 0"),
        ({"row": ["a"], "epoch": [0], "rate": [-0.5]}, "damaged: prompt a"),
        ({"row": ["a"], "epoch": [0], "rate": [math.nan]}, "damaged: prompt a"),
        ({"row": ["a"], "epoch": [-1], "rate": [0.5]}, "damaged: prompt a"),
        ({"row": ["a", "a"], "epoch": [0, 1], "rate": [0.5, 0.5]}, "damaged: it has several pass rates of one prompt"),
    ],
)
def test_what_is_not_a_pass_rate_is_torn(tmp_path, columns, message):
    pq.write_table(pa.table(columns, schema=RATES_SCHEMA), tmp_path / "rates.parquet")

    with pytest.raises(TornError, match=message):
        read_rates(tmp_path / "rates.parquet")


@pytest.mark.parametrize(("rewards", "want"), [((1.0, 0.0, 0.0), 1 / 3), ((2.0, -1.0), 0.5), ((None, 1.0), 1.0), ((None,), None)])
def test_a_pass_rate_is_the_mean_of_the_rewards_between_zero_and_one(rewards, want):
    assert ScoredGroup(PromptRecord("p", (1,), ""), (), rewards).pass_rate == want
