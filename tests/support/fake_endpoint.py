"""A real HTTP server that plays an endpoint of a preference: a test says how it replies, and reads what it was asked.

It stands for judges and reward models of others, whose faults (a rate limit, a web page, garbage) cannot be had on demand.
"""

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request."""

    path: str
    headers: dict[str, str]
    body: Json
    time: float

    @property
    def text(self) -> str:
        """What the user says in a chat."""
        return self.body["messages"][0]["content"]


@dataclass(frozen=True)
class Says:
    """A reply."""

    body: object = field(default_factory=dict[str, Any])
    status: int = 200
    headers: Json = field(default_factory=dict[str, Any])
    after_seconds: float = 0.0

    @property
    def content(self) -> bytes:
        """The body as it is sent: text and bytes as they are, all else as JSON."""
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


Play = Callable[[Asked], Says]


class FakeEndpoint:
    """The server, while `serving` lasts."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint._reply(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _reply(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        asked = Asked(handler.path, dict(handler.headers), body, time.monotonic())
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        says = self.play(asked)
        time.sleep(says.after_seconds)
        with self._lock:
            self._now -= 1
        try:
            handler.send_response(says.status)
            for name, value in ({"Content-Type": "application/json"} | says.headers).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(says.content)))
            handler.end_headers()
            handler.wfile.write(says.content)
        except OSError:
            handler.close_connection = True  # the client did not wait


@contextmanager
def serving(play: Play) -> Generator[FakeEndpoint]:
    """An endpoint that plays."""
    endpoint = FakeEndpoint(play)
    thread = threading.Thread(target=endpoint._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint._server.shutdown()
        endpoint._server.server_close()
        thread.join()


def chat(text: str | None, *, tops: Json | None = None, usage: Json | None = None) -> Says:
    """A chat completion. tops: log-probs of tokens where the last token is said; None: the API gives none."""
    choice: Json = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tops is not None and text:
        top_logprobs = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in tops.items()]
        said = {"token": text, "logprob": tops.get(text, -0.1), "top_logprobs": top_logprobs}
        choice["logprobs"] = {"content": [said]}
    return Says({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def classes(*scores: float | None) -> Says:
    """A reply of vLLM's /classify for texts of a model with one class."""
    data = [{"index": index, "label": "LABEL_0", "probs": [score], "num_classes": 1} for index, score in enumerate(scores)]
    return Says({"id": "x", "object": "list", "data": data, "usage": {"prompt_tokens": 5 * len(data), "total_tokens": 9}})


def scores(*values: float | None) -> Says:
    """A reply of vLLM's /score."""
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(values)]
    return Says({"id": "x", "object": "list", "data": data, "usage": {"prompt_tokens": 5 * len(data), "total_tokens": 9}})


def some_reply(asked: Asked) -> Says:
    """A reply that fits the request, whatever it asks."""
    if asked.path.endswith("/score"):
        return scores(*(0.0 for _ in asked.body["text_1"]))
    if asked.path.endswith("/classify"):
        return classes(*(0.0 for _ in asked.body.get("input", [""])))
    return chat("1")


def prefers(better: Callable[[str], float]) -> Play:
    """A judge of the template PLAIN that prefers the answer for which `better` is larger."""

    def play(asked: Asked) -> Says:
        _, first, second = asked.text.split("|")
        return chat("1" if better(first) > better(second) else "2")

    return play


PLAIN = "{prompt}|{first}|{second}"
