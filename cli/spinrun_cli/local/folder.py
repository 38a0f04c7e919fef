"""The folder of a local run: what is where, and who may use it.

run.yaml        the resolved SpinRun, with a uid of its own
ledger/         the run's ledger
logs/           what the children print
scratch/        the agents' copies of weights
token           bearer token between trainer and agents, readable by the user only
attempt         number of the newest attempt
progress.json   what rank 0 said last of how far it is, for `spinrun watch`
last-words.json what the trainer said as it ended
report.html, curves.png
"""

import fcntl
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from spinrun_api.base import Count, Record
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.files import open_regular, open_to_update, read_record, replace_file
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Progress

LARGEST_ATTEMPT = 2**31
"""Of what a file says: a number beyond it is damage."""


class _Attempt(Record):
    """What is of use here of a ledger's OWNER.json."""

    attempt: Count
    """The newest."""


class RunFolder:
    """Paths of a local run, and the small files that the supervisor keeps."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run_file = self.root / "run.yaml"
        """The resolved SpinRun."""
        self.ledger = self.root / "ledger"
        self.logs = self.root / "logs"
        """What the children print."""
        self.scratch = self.root / "scratch"
        """The agents' copies of weights; of no use once they have ended."""
        self.token_file = self.root / "token"
        """Bearer token of the run."""
        self.termination_file = self.root / "last-words.json"
        """The trainer's termination log."""
        self.progress_file = self.root / "progress.json"
        """What rank 0 reported last."""

    @contextmanager
    def locked(self) -> Generator[None]:
        """Make the folder and hold it for this process.

        Raises:
            InvalidInputError: It cannot be written to.
            CommandError: Another process holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = open_to_update(self.root / "lock")
        except OSError as error:
            raise InvalidInputError(
                f"cannot write to {self.root}: {error.strerror}; choose another folder with --output"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read(100).decode(errors="replace").strip() or "unknown"
                raise CommandError(
                    f"another `spinrun local` (pid {holder}) works on {self.root}: wait for it, stop it, or choose another "
                    "folder with --output"
                ) from error
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n".encode())
            lock.flush()
            yield

    def is_held(self) -> bool:
        """Whether a `spinrun local` of this machine works on the folder. Looks without taking the lock, at which another that
        starts at this moment would give up."""
        try:
            inode = (self.root / "lock").stat().st_ino
            locks = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
        except OSError:
            return False
        return any(fields[1] == "FLOCK" and fields[5].endswith(f":{inode}") for fields in locks if len(fields) > 5)

    def prepare(self) -> None:
        """Make what the children need: folders and the token."""
        for folder in (self.ledger, self.logs, self.scratch):
            folder.mkdir(exist_ok=True)
        if not self.token_file.exists():
            descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_urlsafe(32) + "\n")

    def attempt(self) -> int:
        """The number of the newest attempt; 0 before there is one."""
        with suppress(OSError, ValueError), open_regular(self.root / "attempt") as file:
            return min(int(file.read(20)), LARGEST_ATTEMPT)
        return 0

    def next_attempt(self) -> int:
        """The number of a new attempt: above every one that was ever given, here or in the ledger."""
        numbers = [self.attempt()]
        if (owner := read_record(self.ledger / "OWNER.json", _Attempt)) is not None:
            numbers.append(min(owner.attempt, LARGEST_ATTEMPT))
        number = max(numbers) + 1
        replace_text(self.root / "attempt", f"{number}\n")
        return number

    def termination(self) -> TerminationMessage | None:
        """What the trainer said as it last ended; None when it said nothing that is understood."""
        return read_record(self.termination_file, TerminationMessage)

    def progress(self) -> Progress | None:
        """What rank 0 said last; None when it said nothing that is understood."""
        return read_record(self.progress_file, Progress)

    def save_progress(self, progress: Progress) -> None:
        """Keep what rank 0 reported, for those who watch. The run continues without it."""
        with suppress(OSError):
            replace_text(self.progress_file, progress.model_dump_json(by_alias=True))

    def clear_termination(self) -> None:
        """A new attempt has not ended yet."""
        self.termination_file.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole: a crash leaves the old one or the new one."""
    replace_file(path, text.encode())
