"""Rank 0's HTTP server under clients that nobody wants."""

import json
import socket
import threading
import time
from collections.abc import Generator

import pytest

from spinrun_protocol.wire import Progress
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.server import Gauges, ProgressServer


@pytest.fixture(scope="module")
def server() -> Generator[ProgressServer]:
    board = ProgressBoard(Progress(uid="u", attempt=1, activity="starting", window=0, windows=0, step=0, total_steps=0))
    server = ProgressServer(host="127.0.0.1", port=0, board=board, gauges=Gauges(namespace="n", run="r", method="m"))
    yield server
    server.close()


def connect(server: ProgressServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def ask(server: ProgressServer, content: bytes) -> bytes:
    """All that the server says to some bytes."""
    with connect(server) as client:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := client.recv(65536):
                received += piece
        except ConnectionError:  # what was sent and not read is gone
            pass
        return received


def assert_serves(server: ProgressServer) -> None:
    head, _, body = ask(server, b"GET /progress HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert json.loads(body)["uid"] == "u"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 1000,
        b"GET\r\n\r\n",
        b"GET /progress HTTP/9.9\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /progress HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /progress HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"POST /progress HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nx",
        b"GET /<script> HTTP/1.1\r\n\r\n",
    ],
    ids=lambda content: ascii(content[:30]),
)
def test_nonsense_is_refused_and_the_server_serves(
    server: ProgressServer, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    answer = ask(server, content)

    # To what is not even a request's first line, the standard library answers as HTTP 0.9 did: without a head.
    assert not answer or b"Error response" in answer, answer
    assert b"<script>" not in answer
    assert_serves(server)
    assert "Traceback" not in capfd.readouterr().err


def test_client_that_goes_away_leaves_no_traceback(server: ProgressServer, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        client = connect(server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        client.close()

    assert_serves(server)
    assert "Traceback" not in capfd.readouterr().err


def test_request_that_trickles_in_is_given_up(server: ProgressServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._server, "connection_seconds", 0.3)
    started = time.monotonic()
    with connect(server) as client:
        try:
            for _ in range(100):
                client.sendall(b"G")
                time.sleep(0.1)
        except ConnectionError:
            pass
    assert time.monotonic() - started < 5
    assert_serves(server)


def test_newcomers_take_the_place_of_the_oldest(server: ProgressServer) -> None:
    most = server._server.max_connections
    threads = threading.active_count()
    clients = [connect(server) for _ in range(2 * most)]

    assert_serves(server)
    assert clients[0].recv(1) == b"", "the oldest has been closed"
    until_few(threads + most)
    for client in clients:
        client.close()


def until_few(threads: int) -> None:
    """Wait until no more than these threads are left."""
    deadline = time.monotonic() + 5
    while threading.active_count() > threads:
        assert time.monotonic() < deadline, f"{threading.active_count()} threads"
        time.sleep(0.05)
