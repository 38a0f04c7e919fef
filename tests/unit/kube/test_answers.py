"""Reading answers: to the byte, whatever the pieces that they come in, and never more than a limit."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_kube import answers
from spinrun_kube.answers import DEEPEST, AnswerTooLongError, InvalidAnswerError, parse_object, read_at_most


def stream_of(*pieces: bytes) -> aiohttp.StreamReader:
    """An answer that has come in these pieces."""
    loop = asyncio.get_running_loop()
    stream = aiohttp.StreamReader(BaseProtocol(loop), limit=2**16, loop=loop)
    for piece in pieces:
        stream.feed_data(piece)
    stream.feed_eof()
    return stream


async def lines_of(*pieces: bytes, limit: int = 100) -> list[bytes | None]:
    """Its lines."""
    return [line async for line in answers.lines(stream_of(*pieces), limit=limit, silence_seconds=5)]


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """A text in pieces."""
    ends = sorted({place % (len(content) + 1) for place in places} | {0, len(content)})
    return [content[start:end] for start, end in itertools.pairwise(ends)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=15).map(lambda line: line.replace(b"\n", b""))), st.lists(st.integers(0, 500)))
def test_lines_are_the_same_whatever_the_pieces(lines: list[bytes], places: list[int]) -> None:
    content = b"".join(line + b"\n" for line in lines)
    want = [None if len(line) > 10 else line for line in lines if line]
    assert asyncio.run(lines_of(*cut(content, places), limit=10)) == want


@pytest.mark.parametrize(
    ("pieces", "want"),
    [
        ([], []),
        ([b"\n\n\n"], []),
        ([b"half"], [b"half"]),
        ([b"a\nhalf"], [b"a", b"half"]),
        ([b"x" * 10 + b"\n"], [b"x" * 10]),
        ([b"x" * 11 + b"\n", b"b\n"], [None, b"b"]),
        ([b"x" * 11], []),
        ([b"x" * 8, b"x" * 8, b"x" * 8, b"\nb\n"], [None, b"b"]),
        ([b"x" * 10, b"\n", b"b\n"], [b"x" * 10, b"b"]),
    ],
)
async def test_long_lines_are_passed_over(pieces: list[bytes], want: list[bytes | None]) -> None:
    assert await lines_of(*pieces, limit=10) == want


async def test_line_that_never_ends_is_silence() -> None:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    stream = aiohttp.StreamReader(protocol, limit=2**16, loop=loop)

    async def feed() -> None:
        while True:
            stream.feed_data(b"x")
            await asyncio.sleep(0.01)

    feeding = asyncio.create_task(feed())
    with pytest.raises(TimeoutError):
        async for _ in answers.lines(stream, limit=10, silence_seconds=0.1):
            pass
    feeding.cancel()


async def test_answer_is_read_up_to_its_limit() -> None:
    assert await read_at_most(stream_of(b"abc", b"de"), 5) == b"abcde"
    with pytest.raises(AnswerTooLongError):
        await read_at_most(stream_of(b"abc", b"def"), 5)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"7", b"null", b'"x"', b"{", b'{"a":}', b"\xff", b"\x00", b"9" * 9999]
)
async def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidAnswerError):
        await parse_object(content)


def nested(levels: int, inner: str = "1") -> bytes:
    """Objects within objects."""
    return ('{"a":' * levels + inner + "}" * levels).encode()


def depth_of(value: Any) -> int:
    """Levels of nesting."""
    depth = 0
    while isinstance(value, dict | list):
        value = next(iter(value.values() if isinstance(value, dict) else value), None)
        depth += 1
    return depth


@pytest.mark.parametrize(("levels", "want"), [(10, 10), (800, 800), (5000, DEEPEST), (100_000, DEEPEST)])
async def test_depths_are_cut_where_python_cannot_read_them(levels: int, want: int) -> None:
    assert depth_of(await parse_object(nested(levels))) == want


async def test_nothing_else_is_lost_where_depths_are_cut() -> None:
    text = json.dumps({"s": 'a ] } " \\ ü', "l": [1, {"x": []}], "deep": 0, "n": -1.5e3, "after": {"b": ["c"]}})
    want = json.loads(text)
    found = await parse_object(text.replace('"deep": 0', f'"deep": {nested(5000).decode()}').encode())
    assert found | {"deep": 0} == want


@pytest.mark.parametrize("content", [b'{"a":' * 5000, b"[" * 5000, nested(5000)[:-1], nested(5000) + b"}"])
async def test_depths_without_end_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidAnswerError):
        await parse_object(content)


async def test_cutting_holds_up_nobody() -> None:
    """Four megabytes of brackets take a while."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await parse_object(b'{"a":' + b"[" * 2000 + b"]" * 2000 + b',"b":[' + b"[],[[]]," * 200_000 + b"0]}")
    ticking.cancel()
    assert ticks >= 3
