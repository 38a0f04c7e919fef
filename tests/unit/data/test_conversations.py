"""Conversations as data sets write them, and what becomes of them in a prompt."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.spec import Source
from spinrun_worker.data import PromptSet, load_prompts
from spinrun_worker.data.conversations import SPEAKERS, last_request, read_conversation
from spinrun_worker.data.rows import RowError
from spinrun_worker.errors import ConfigurationError
from support.models import tiny_tokenizer, words_of

TOKENIZER = tiny_tokenizer()

SYSTEM = {"role": "system", "content": "Answer in German."}
ASKED = {"role": "user", "content": "What is the capital of France?"}
SAID = {"role": "assistant", "content": "Paris."}
AND = {"role": "user", "content": "And east of it?"}
TURNS = [SYSTEM, ASKED, SAID, AND]
HI = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
FOUND = {"role": "tool", "content": "found", "tool_call_id": "1"}
ONE, TWO = {"type": "text", "text": "one"}, {"type": "text", "text": "two"}
FIELDS = ["role", "content", "from", "value", "type", "text", "tool_calls", "name"]


def load(rows: list[dict[str, Any]], tmp_path: Path, **fields: Any) -> PromptSet:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_source(path, **fields)


def load_source(source: Path | str, *, needs_answer: bool = False, **fields: Any) -> PromptSet:
    given: dict[str, Any] = {"source": str(source), "messages_column": "messages", **fields}
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "chat_template": None, "max_prompt_tokens": 512}
    return load_prompts(Source(**given), block="data.prompts", seed=0, needs_answer=needs_answer, **options)


def shared_gpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": speakers[message["role"]], "value": message["content"]} for message in messages]


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (TURNS, TURNS),
        (shared_gpt(TURNS), TURNS),
        (shared_gpt([*TURNS, SAID]), TURNS),
        ([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", "role": None}], [HI]),
        ([{"from": " Human", "value": "hi"}], [HI]),
        ([{"from": "human", "value": "hi", "weight": None}], [HI]),
        ([{"role": "user", "value": "hi"}], [HI]),
        ([{"from": "user", "content": "hi"}], [HI]),
        ({"role": ["system", "user"], "content": ["be brief", "hi"]}, [SYSTEM | {"content": "be brief"}, HI]),
        ({"from": ["human", "gpt"], "value": ["hi", "hello"]}, [HI]),
        ([SYSTEM | {"content": ""}, AND], [SYSTEM | {"content": ""}, AND]),
        ([AND | {"content": [ONE, TWO]}], [AND | {"content": "one\ntwo"}]),
        ([AND | {"content": [{"text": "one", "image": None}, "two"]}], [AND | {"content": "one\ntwo"}]),
        ([AND | {"id": 7, "name": None, "tool_calls": []}], [AND]),
        ([AND, CALLED, FOUND], [AND, CALLED, FOUND]),
        ([AND, CALLED | {"content": None, "tool_calls": [CALL | {"index": None}]}, FOUND], [AND, CALLED, FOUND]),
    ],
)
def test_conversations_are_read_in_every_form(value: object, want: list[dict[str, Any]]):
    assert list(read_conversation(value)) == want


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        ([SYSTEM, ASKED, SAID], "malformed", "the last message is the assistant's"),
        ([ASKED, SAID, SAID], "malformed", "the last message is the assistant's"),
        (shared_gpt([SAID]), "empty", "there is no message to answer"),
        (shared_gpt([ASKED, SAID, SAID]), "malformed", "the last message is the assistant's"),
        ([{"from": "moderator", "value": "hi"}], "malformed", "a message is from moderator, which is none of human, user"),
        ([{"from": 3, "value": "hi"}], "malformed", "a message must have role and content, or from and value, as text"),
        ([{"from": "human", "value": 3}], "malformed", "a message must have"),
        ([{"role": "user", "content": float("nan")}], "malformed", "a message must have"),
        ([{"role": "assistant", "content": None}, AND], "malformed", "a message must have"),
        ([AND | {"content": [{"type": "image_url", "image_url": "x"}]}], "malformed", "a part of a message must be text, got"),
        ([AND | {"content": [3]}], "malformed", "a part of a message must be text, got 3"),
        ([AND | {"content": []}], "empty", "there is no message to answer"),
        ([AND | {"tool_calls": "look()"}], "malformed", "tool_calls must be a list of objects"),
        ([AND | {"tool_calls": ["look()"]}], "malformed", "tool_calls must be a list of objects"),
        ({"role": ["user"], "content": []}, "malformed", "must be a list of messages, got dict"),
        ({"role": "user", "content": "hi"}, "malformed", "must be a list of messages, got dict"),
        ({}, "malformed", "must be a list of messages, got dict"),
        (3, "malformed", "must be a list of messages, got int"),
        ([None], "malformed", "a message must have"),
    ],
)
def test_what_is_not_a_conversation_is_named(value: object, reason: str, words: str):
    with pytest.raises(RowError, match=words) as raised:
        read_conversation(value)
    assert raised.value.reason == reason


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from([*SPEAKERS, "text", "hi", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls", "name"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(value=anything, is_answered=st.booleans())
def test_anything_is_a_conversation_of_texts_or_a_malformed_row(value: object, is_answered: bool):
    try:
        messages = read_conversation(value, is_answered=is_answered)
    except RowError:
        return
    assert all(isinstance(message["role"], str) and isinstance(message["content"], str) for message in messages)
    assert json.loads(json.dumps(messages, allow_nan=True)) is not None


@pytest.mark.parametrize(
    ("messages", "want"),
    [
        (TURNS, "And east of it?"),
        ([SYSTEM], "Answer in German."),
        ([AND, {"role": "tool", "content": "found"}], "And east of it?"),
    ],
)
def test_what_is_asked_is_the_last_message_of_the_user(messages: list[dict[str, str]], want: str):
    assert last_request(messages) == want


# --- what becomes of it ----------------------------------------------------------------------------------------------


def test_a_prompt_keeps_every_message_with_its_role(tmp_path: Path):
    (record,) = load([{"messages": TURNS}], tmp_path).records
    assert (record.text, list(record.messages)) == ("And east of it?", TURNS)


def test_a_single_text_is_one_message_of_a_user(tmp_path: Path):
    (record,) = load([{"q": "hi"}], tmp_path, messages_column=None, prompt_column="q").records
    assert (record.conversation, record.messages) == ((), ({"role": "user", "content": "hi"},))


def test_logs_of_sharegpt_are_prompts_without_their_last_answer(tmp_path: Path):
    (record,) = load([{"conversations": shared_gpt([*TURNS, SAID])}], tmp_path, messages_column="conversations").records
    want = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in TURNS)
    assert words_of(TOKENIZER, record.tokens) == f"<bos>{want}<|im_start|>assistant\n"
    assert record.answer is None


def test_last_message_can_be_the_true_answer(tmp_path: Path):
    (record,) = load([{"messages": [*TURNS, SAID]}], tmp_path, answer_column="messages.-1.content").records
    assert (list(record.messages), record.answer) == (TURNS, "Paris.")
    (record,) = load([{"log": shared_gpt([ASKED, SAID])}], tmp_path, messages_column="log", answer_column="log.-1.value").records
    assert (list(record.messages), record.answer) == ([ASKED], "Paris.")


def test_what_the_user_says_last_is_no_true_answer(tmp_path: Path):
    rows = [{"messages": TURNS}, {"messages": [*TURNS, SAID]}]
    records = load(rows, tmp_path, answer_column="messages.-1.content").records
    assert {(record.id, record.answer) for record in records} == {("0", None), ("1", "Paris.")}
    assert all(list(record.messages) == TURNS for record in records)
    needed = load(rows, tmp_path, answer_column="messages.-1.content", needs_answer=True)
    assert ([record.answer for record in needed.records], needed.dropped) == (["Paris."], {"no_answer": 1})


def test_a_conversation_inside_a_column_can_be_named(tmp_path: Path):
    (record,) = load([{"extra": {"turns": TURNS}}], tmp_path, messages_column="extra.turns").records
    assert list(record.messages) == TURNS


def test_conversations_come_out_of_parquet_as_out_of_json(tmp_path: Path):
    with_tools = [AND, CALLED | {"content": None}, FOUND]
    pq.write_table(pa.Table.from_pylist([{"messages": TURNS}, {"messages": with_tools}]), tmp_path / "p.parquet")
    records = {record.id: list(record.messages) for record in load_source(tmp_path / "p.parquet").records}
    assert records == {"0": TURNS, "1": [AND, CALLED, FOUND]}


def test_conversations_come_out_of_the_hub_as_out_of_a_file(monkeypatch: pytest.MonkeyPatch):
    data = datasets.Dataset.from_list(
        [{"conversations": shared_gpt([*TURNS, SAID]), "info": {"answer": 42.0}}, {"info": {"answer": None}}]
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    prompts = load_source("team/logs", messages_column="conversations", answer_column="info.answer")
    assert [(list(record.messages), record.answer) for record in prompts.records] == [(TURNS, "42")]
    assert prompts.dropped == {"empty": 1}


def test_a_single_malformed_row_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    prompts = load([{"messages": TURNS, "a": "1"}, {"messages": TURNS, "a": ["2"]}], tmp_path, answer_column="a")
    assert ([record.answer for record in prompts.records], prompts.dropped) == (["1"], {"malformed": 1})
    assert "row 1: data.prompts.answerColumn: column a holds a list, not text: name what is inside, such as a.0" in caplog.text


def test_a_prompt_column_that_is_not_there_points_to_messages(tmp_path: Path):
    with pytest.raises(
        ConfigurationError, match=r"promptColumn: there is no column 'prompt'.*conversations belongs in messagesColumn"
    ):
        load([{"conversations": []}], tmp_path, messages_column=None)
