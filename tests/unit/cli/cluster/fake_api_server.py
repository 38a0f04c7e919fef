"""An API server that answers by script: what a real one can hardly be made to say."""

import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from unit.api.invalid_runs import MINIMAL

Json = dict[str, Any]

RUNS = "/apis/spinrun.dev/v1alpha1/namespaces/default/spinruns"


UID = "867d5e77-d3e6-4e11-a237-d1297dc28ef8"


def spin_run(**status: Any) -> Json:
    """A run as the API server has it."""
    metadata = {"name": "demo", "namespace": "default", "uid": UID, "generation": 1, "resourceVersion": "7"}
    spec = MINIMAL["spec"] | {"lifecycle": {"suspend": False}}
    return MINIMAL | {"metadata": metadata | {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status}


def over(kind: str, reason: str, message: str, **status: Any) -> Json:
    """A run that is over."""
    when = {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True"}
    return spin_run(**status | {"phase": kind, "conditions": [{"type": kind, "reason": reason, "message": message} | when]})


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
    """Answers each method in the order of its script, or that of its path where it has one; the last answer stays."""

    script: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path with query of all that was asked."""
    bodies: list[Json] = field(default_factory=list)
    """What was sent along, where something was."""

    def answers(self, method: str, *answers: Answer) -> None:
        """What it says to a method."""
        self.script[method] = list(answers)

    def answers_at(self, method: str, path: str, *answers: Answer) -> None:
        """What it says to a method at a path, without its query. * at the end stands for the rest of a name."""
        self.script[f"{method} {path}"] = list(answers)

    def next(self, method: str, path: str) -> Answer:
        """The answer to a request."""
        self.requests.append((method, path))
        asked = f"{method} {path.partition('?')[0]}"
        scripts = [key for key in self.script if re.fullmatch(re.escape(key).replace(r"\*", "[^/]*"), asked)]
        answers = self.script[max(scripts, key=len, default=method)]
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
            if length := int(self.headers.get("Content-Length", 0)):
                fake.bodies.append(yaml.safe_load(self.rfile.read(length)))
            answer = fake.next(self.command, self.path)
            body = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
            self.send_response(answer.status)
            for name, value in (answer.headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

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
