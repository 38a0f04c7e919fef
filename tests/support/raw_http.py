"""HTTP as no client would write it: bytes over a socket."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from support.rollouts import TOKEN

AUTHORIZATION = f"Authorization: Bearer {TOKEN}\r\n"


@dataclass(frozen=True)
class Answer:
    """An answer as it came, or nothing."""

    status: int
    """0 where the server closed the connection without an answer."""
    head: str
    body: bytes


def request(
    method: str, path: str, *headers: str, body: bytes = b"", token: bool = True, length: bool = True, keep: bool = False
) -> bytes:
    """A request, the connection's last one unless it is told to keep it. Headers are taken as they are, without line ends."""
    lines = [f"{method} {path} HTTP/1.1", "Host: agent", *headers, f"Connection: {'keep-alive' if keep else 'close'}"]
    lines += [AUTHORIZATION.strip()] if token else []
    lines += [f"Content-Length: {len(body)}"] if length and body else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def send(
    port: int,
    *pieces: bytes,
    pause: float = 0.0,
    seconds: float = 10.0,
    idle_seconds: float = 0.5,
    patience_seconds: float | None = None,
) -> list[Answer]:
    """Send pieces over one connection and read the answers until the server closes it, or says no more.

    Args:
        port: The server's, on the loopback interface.
        pieces: What is sent.
        pause: Seconds between the pieces.
        seconds: For all of it.
        idle_seconds: Silence after which an answer is taken for the last one.
        patience_seconds: Silence after which no answer is expected any more; None: not before `seconds`.
    """
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        received = b""
        try:
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(pause)
            # The connection may be reset, with an answer before it.
            with suppress(ConnectionError, TimeoutError):
                while piece := await asyncio.wait_for(reader.read(1 << 16), idle_seconds if received else patience_seconds):
                    received += piece
        finally:
            writer.close()
    return answers_in(received)


async def first(reader: asyncio.StreamReader) -> Answer:
    """The first answer on a connection that stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = next(int(line.partition(":")[2]) for line in head.splitlines() if line.lower().startswith("content-length:"))
    return Answer(int(head.split()[1]), head, await reader.readexactly(length))


def answers_in(received: bytes) -> list[Answer]:
    """The answers that a server has sent, split by their lengths; those of a stream, and what cannot be split, as one."""
    answers: list[Answer] = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").splitlines()
        lengths = [int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")]
        status = int(lines[0].split()[1])
        length = lengths[0] if lengths else (0 if status < 200 else len(received))
        answers.append(Answer(status, head.decode("latin-1"), received[:length]))
        received = received[length:]
    return answers
