"""Conversations as data sets write them: lists of messages with role and content, or ShareGPT's with from and value."""

from collections.abc import Sequence
from typing import cast

from spinrun_worker.data.rows import RowError, is_missing
from spinrun_worker.records import Message

SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "bot", "chatbot", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation"), "tool"),
}
"""Who ShareGPT's `from` names, as a role."""

_OF_TOOLS = ("tool_calls", "tool_call_id", "name")
Fields = dict[str, object]


def read_conversation(value: object, *, is_answered: bool = False) -> tuple[Message, ...]:
    """The messages that lead to the one that the model is to write.

    Args:
        value: What the row holds.
        is_answered: Whether the last message, where it is the assistant's, is the true answer, and so no part of the prompt. In
            ShareGPT's logs it always is.

    Raises:
        RowError: It is not a conversation, or there is nothing to answer.
    """
    listed = _listed(value)
    messages = [_message(each) for each in listed]
    if messages and messages[-1]["role"] == "assistant" and (is_answered or _is_log(listed[-1])):
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise RowError("empty", "there is no message to answer")
    if messages[-1]["role"] == "assistant":
        raise RowError(
            "malformed",
            "the last message is the assistant's, which the model is to write: leave it out, or make it the true answer, as in "
            "answerColumn: messages.-1.content",
        )
    return tuple(messages)


def last_request(messages: Sequence[Message]) -> str:
    """What the user asks: the last message of theirs, or the last one where none is theirs."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return asked[-1] if asked else messages[-1]["content"]


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    if isinstance(value, dict) and value:
        # A list of structs in Arrow's other form: a list for each field.
        columns = cast("dict[str, object]", value)
        lists = [cast("list[object]", each) for each in columns.values() if isinstance(each, list)]
        if len(lists) == len(columns) and len({len(each) for each in lists}) == 1:
            return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise RowError("malformed", f"must be a list of messages, got {type(value).__name__}")
    return cast("list[object]", value)


def _is_log(message: object) -> bool:
    return isinstance(message, dict) and cast(Fields, message).get("role") is None


def _message(value: object) -> Message:
    fields = cast(Fields, value) if isinstance(value, dict) else {}
    role = _role(fields)
    content = _content(fields.get("content") if fields.get("content") is not None else fields.get("value"))
    of_tools = {name: _as_json(fields[name]) for name in _OF_TOOLS if fields.get(name)}
    calls = of_tools.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in cast("list[object]", calls)):
        raise RowError("malformed", f"tool_calls must be a list of objects, got {_shown(calls)}")
    if content is None and calls:
        content = ""  # as OpenAI writes a message that only calls tools
    if role is None or content is None:
        raise RowError("malformed", f"a message must have role and content, or from and value, as text, got {_shown(value)}")
    return {"role": role, "content": content, **of_tools}


def _role(fields: Fields) -> str | None:
    role, speaker = fields.get("role"), fields.get("from")
    if isinstance(role, str):
        return role
    if not isinstance(speaker, str):
        return None
    try:
        return SPEAKERS[speaker.strip().lower()]
    except KeyError:
        known = ", ".join(SPEAKERS)
        raise RowError("malformed", f"a message is from {_shown(speaker)}, which is none of {known}") from None


def _content(value: object) -> str | None:
    """A message's text, also where it is in parts; None where it has none."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    texts: list[str] = []
    for part in cast("list[object]", value):
        fields = cast(Fields, part) if isinstance(part, dict) else {"type": "text", "text": part}
        kind, text = fields.get("type", "text"), fields.get("text")
        if kind != "text" or not isinstance(text, str):
            raise RowError("malformed", f"a part of a message must be text, got {_shown(part)}")
        texts.append(text)
    return "\n".join(texts)


def _as_json(value: object) -> object:
    """The value without the fields that Arrow adds where another row has them, and with text for what JSON lacks."""
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in cast(Fields, value).items() if not is_missing(inner)}
    if isinstance(value, list):
        return [_as_json(inner) for inner in cast("list[object]", value)]
    return value if isinstance(value, (str, int, float)) or value is None else str(value)


def _shown(value: object) -> str:
    return str(value)[:80]
