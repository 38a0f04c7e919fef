"""vLLM, agent, scorer and trainer as small programs: they start in milliseconds and do what a script says.

    python fake_children.py ROLE PORT FOLDER NUMBER

FOLDER/ROLE.script holds a line for each life; the last line counts for all that follow:

    serve        answer until SIGTERM, then end in good order (trainer: 3 with a termination message, others: 0)
    stubborn     the same, but SIGTERM is ignored
    exit CODE    end at once
    complete     (trainer) end with a termination message and 0
    die CODE     (trainer) end with a termination message that say Failed
    crash        answer for a moment, then die by SIGKILL
    taken        end as a process does whose port is taken

Each life starts a grandchild in a session of its own, as vLLM and the trainer do, and writes all its process ids to FOLDER/pids.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROLE, PORT, FOLDER, NUMBER = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])


def main() -> None:
    descendant = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
    note(FOLDER / "pids", f"{os.getpid()}\n{descendant.pid}\n")
    action, _, argument = next_action().partition(" ")
    note(FOLDER / "lives", f"{ROLE} {NUMBER} {action}\n")
    if ROLE == "trainer" and (scorers := os.environ.get("SPINRUN_SCORERS")):
        (FOLDER / "scorers").write_text(scorers)
    print(f"{ROLE} says {action} <b>{argument}</b>", flush=True)
    if action == "exit":
        sys.exit(int(argument))
    if action == "taken":
        print(f"OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', {PORT}): address already in use")
        sys.exit(1)
    if action in ("complete", "die"):
        result, message = ("Complete", "5 windows") if action == "complete" else ("Failed", "beta is too large")
        speak(result, int(argument or 0), message)
        sys.exit(int(argument or 0))
    signal.signal(signal.SIGTERM, signal.SIG_IGN if action == "stubborn" else end_well)
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    if action == "crash":
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wait_for(Handler.asked)
        os.kill(os.getpid(), signal.SIGKILL)
    server.serve_forever()


def next_action() -> str:
    """This life's line of the script."""
    lines = (FOLDER / f"{ROLE}.script").read_text().splitlines()
    count = FOLDER / f"{ROLE}.count"
    life = int(count.read_text()) if count.exists() else 0
    count.write_text(str(life + 1))
    return lines[min(life, len(lines) - 1)]


def end_well(number: int, frame: object) -> None:
    if ROLE != "trainer":
        os._exit(0)
    speak("Preempted", 3, "saved a checkpoint")
    os._exit(3)


def speak(result: str, code: int, message: str) -> None:
    words = {"result": result, "reason": result, "message": message, "exitCode": code}
    Path(os.environ["SPINRUN_TERMINATION_LOG"]).write_text(json.dumps(words))


def wait_for(event: threading.Event) -> None:
    if not event.wait(30):
        sys.exit("nobody asked")
    time.sleep(0.05)


def note(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


class Handler(BaseHTTPRequestHandler):
    asked = threading.Event()

    def do_GET(self) -> None:
        body = b"{}"
        if self.path == "/progress":
            progress = {"uid": (FOLDER / "uid").read_text(), "attempt": NUMBER, "activity": "generate", "window": 1, "windows": 5}
            body = json.dumps(progress | {"step": 4, "totalSteps": 20, "promptsDone": 3, "promptsTotal": 64}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        Handler.asked.set()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


if __name__ == "__main__":
    main()
