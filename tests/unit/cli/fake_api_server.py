"""An API server that answers by script: what a real one can hardly be made to say."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

RUNS = "/apis/spinrun.dev/v1alpha1/namespaces/default/spinruns"


@dataclass(frozen=True)
class Answer:
    """What the server says once."""

    status: int
    body: Json | str
    headers: dict[str, str] = field(default_factory=dict)


def failure(status: int, reason: str, message: str, **headers: str) -> Answer:
    """An error as Kubernetes sends it."""
    return Answer(status, {"kind": "Status", "status": "Failure", "reason": reason, "message": message}, headers)


@dataclass
class FakeApiServer:
    """Answers each method in the order of its script; the last answer stays."""

    script: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path with query of all that was asked."""

    def answers(self, method: str, *answers: Answer) -> None:
        """What it says to a method."""
        self.script[method] = list(answers)

    def next(self, method: str, path: str) -> Answer:
        """The answer to a request."""
        self.requests.append((method, path))
        answers = self.script[method]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def methods(self) -> list[str]:
        """What was asked, without where."""
        return [method for method, _ in self.requests]


@contextmanager
def fake_api_server(folder: Path) -> Generator[tuple[FakeApiServer, Path]]:
    """A server, and the kubeconfig that names it."""
    fake = FakeApiServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = fake.next(self.command, self.path)
            body = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
            self.send_response(answer.status)
            for name, value in (answer.headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PATCH = do_DELETE = _answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake, write_kubeconfig(folder, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(folder: Path, port: int) -> Path:
    """A kubeconfig for a server on this machine."""
    path = folder / "kubeconfig"
    document = {
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "fake", "user": "me"}},
            {"name": "team", "context": {"cluster": "fake", "user": "me", "namespace": "team"}},
        ],
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path
