"""Processes that belong to a state folder: DIR/pids has their pids, DIR/log what they say."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from testcluster.errors import ClusterError

STOP_SECONDS = 15


def run(*command: str | Path, stdin: IO[bytes] | None = None) -> str:
    """Runs a program to its end and returns its stdout; raises ClusterError with its stderr where it fails."""
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def running_pid(state: Path, name: str) -> int | None:
    """The process that runs program `name` for this state folder, if it lives.

    A pid in a file may since belong to somebody else: every command line here names the folder, so it is looked for. It is
    empty for a moment while a program starts.
    """
    try:
        pid = int((state / "pids" / name).read_text())
        process = Path("/proc", str(pid))
        zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        command = (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    ours = not command or f"{state}/".encode() in command
    return pid if ours and not zombie else None


def command_line(binary: Path, flags: Mapping[str, object]) -> list[str]:
    """A Go program with its flags."""
    return [str(binary), *(f"--{flag}={value}" for flag, value in flags.items())]


def start(state: Path, name: str, command: Sequence[str]) -> None:
    """Starts a program in a session of its own: Ctrl-C in the terminal is for the tests, which then call `down`.

    Args:
        state: The state folder, where the program runs.
        name: Of its files in `pids` and `log`.
        command: Must name a path inside the folder, see `running_pid`.
    """
    with (state / "log" / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=state,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (state / "pids" / name).write_text(str(process.pid))


def end(state: Path, names: Sequence[str]) -> None:
    """Ends programs: SIGTERM, SIGKILL after STOP_SECONDS, and a check that they are gone."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for name in names:
            if pid := running_pid(state, name):
                os.kill(pid, sent)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if not any(running_pid(state, name) for name in names):
                return
            time.sleep(0.02)
    raise ClusterError(f"still running after SIGKILL: look for the pids in {state}/pids")


def wait_for_end(pid: int) -> None:
    """Waits for a process that need not be a child of ours."""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.5)


class Startup:
    """The processes of one `up` with one deadline for all of them."""

    def __init__(self, state: Path, timeout: float) -> None:
        self.state = state
        self.deadline = time.monotonic() + timeout
        self.timeout = timeout

    def wait(self, what: str, name: str, ready: Callable[[], bool]) -> None:
        """Waits until something is ready.

        Args:
            what: What is waited for, as a clause in the past tense for the error: "etcd was healthy".
            name: The program that makes it ready.
            ready: Whether it is.

        Raises:
            ClusterError: At the deadline, or at once when the program has ended.
        """
        while not ready():
            if running_pid(self.state, name) is None:
                raise ClusterError(f"{name} ended before {what}")
            if time.monotonic() > self.deadline:
                raise ClusterError(f"not in {self.timeout:.0f} s: {what}")
            time.sleep(0.05)


def tail_of_logs(state: Path, lines: int = 20) -> str:
    """The last lines of every log, each under its file's name."""
    logs = sorted((state / "log").glob("*.log"))
    return "\n".join(f"== {log}\n" + "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:]) for log in logs)


def print_status(pids: Mapping[str, int | None]) -> int:
    """Prints each process with its pid, and returns the exit status: 1 unless all of them run."""
    for name, pid in pids.items():
        print(f"{name:24} {f'running, pid {pid}' if pid else 'not running'}")
    return 0 if all(pids.values()) else 1


def running_pids(state: Path, names: Iterable[str]) -> dict[str, int | None]:
    """The pid of each of these programs, None for one that does not run."""
    return {name: running_pid(state, name) for name in names}


def reserve_port() -> int:
    """A free port on 127.0.0.1 that the kernel gives to nobody else for the next minute.

    A connection that the listening side closed first leaves the port in TIME_WAIT: the kernel then picks it for no other
    socket, while a server that asks for it by number gets it (Go sets SO_REUSEADDR).
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()
            client.recv(1)
    return port
