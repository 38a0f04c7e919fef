"""Reading what a server sends: never more than a limit, and whatever it may be.

Whoever may write objects decides how long, how deep and how many they are, and between us and the API server there may be a proxy
with answers of its own.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import aiohttp

Json = dict[str, Any]

DEEPEST = 250
"""Levels of nesting that are read. The API server takes ten thousand; Python's parser gives up before one thousand."""

# Strings are passed over as a whole: what looks like a bracket inside one is text.
_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)


class InvalidAnswerError(Exception):
    """What a server answered is not what was asked for. The message says what came instead."""


class AnswerTooLongError(InvalidAnswerError):
    """An answer is longer than what is read."""


async def read_at_most(stream: aiohttp.StreamReader, limit: int) -> bytes:
    """All bytes of an answer, in however many pieces they come.

    Raises:
        AnswerTooLongError: There are more than `limit`.
    """
    content = bytearray()
    async for piece in stream.iter_any():
        content += piece
        if len(content) > limit:
            raise AnswerTooLongError(f"the answer is longer than {limit} bytes")
    return bytes(content)


async def lines(stream: aiohttp.StreamReader, *, limit: int, silence_seconds: float) -> AsyncGenerator[bytes | None]:
    """The lines of an answer as they come, without their ends. Empty ones are left out; None stands for one above the limit.

    Raises:
        TimeoutError: No line came to its end within the time.
    """
    loop = asyncio.get_running_loop()
    kept, is_too_long, deadline = bytearray(), False, loop.time() + silence_seconds
    while True:
        async with asyncio.timeout_at(deadline):
            piece = await stream.readany()
        if not piece:
            break
        *ends, rest = piece.split(b"\n")
        for end in ends:
            is_too_long = is_too_long or len(kept) + len(end) > limit
            if is_too_long:
                yield None
            elif line := bytes(kept + end):
                yield line
            kept.clear()
            is_too_long, deadline = False, loop.time() + silence_seconds
        # What is too long is read to its end, and not kept.
        is_too_long = is_too_long or len(kept) + len(rest) > limit
        if is_too_long:
            kept.clear()
        else:
            kept += rest
        # A server that sends without a pause leaves nothing to wait for: others have their turn here.
        await asyncio.sleep(0)
    if kept:
        yield bytes(kept)


async def parse_object(content: bytes) -> Json:
    """The JSON object that an answer holds. Of what is nested deeper than `DEEPEST` levels, null is left.

    Raises:
        InvalidAnswerError: It holds something else.
    """
    try:
        parsed = json.loads(content)
    except RecursionError:
        # In a thread, as it takes long: the parser's own loop cannot be interrupted, this one can.
        parsed = await asyncio.to_thread(_parse_deep, content)
    except ValueError:
        raise InvalidAnswerError(f"the answer is not JSON: {_beginning(content)}") from None
    if not isinstance(parsed, dict):
        raise InvalidAnswerError(f"the answer is not a JSON object: {_beginning(content)}")
    return parsed


def _parse_deep(content: bytes) -> Any:
    try:
        return json.loads(b"".join(_without_depths(content)))
    except ValueError:
        raise InvalidAnswerError(f"the answer is not JSON: {_beginning(content)}") from None


def _without_depths(content: bytes) -> Iterator[bytes]:
    """The text with null in place of each value below the deepest level."""
    depth, start = 0, 0
    for bracket in _BRACKETS.finditer(content):
        match bracket[0][:1]:
            case b"[" | b"{":
                depth += 1
                if depth == DEEPEST + 1:
                    yield content[start : bracket.start()]
                    yield b"null"
            case b"]" | b"}":
                if depth == DEEPEST + 1:
                    start = bracket.end()
                depth -= 1
            case _:
                pass
    if depth > DEEPEST:
        raise InvalidAnswerError("the answer ends within a value")
    yield content[start:]


def _beginning(content: bytes) -> str:
    """The first of what came, for people."""
    return repr(content[:100].decode("utf-8", "replace"))
