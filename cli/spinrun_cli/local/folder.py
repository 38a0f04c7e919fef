"""The folder of a local run: what is where, who may use it, and whether a start goes on with what is there.

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
import json
import os
import secrets
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spinrun_api.documents import InvalidDocumentError, read_run
from spinrun_api.run import SpinRun
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_protocol.termination import LastWords
from spinrun_protocol.wire import Progress

NAMESPACE = "local"

CHANGEABLE = (("duration",), ("lifecycle",), ("telemetry",), ("rollout", "replicas"), ("scorer",))
"""Fields of the spec that a resumed run may change."""


class Start(Enum):
    """What a start finds in the folder and does with it."""

    NEW = "new"
    RESUMED = "resumed"
    FINISHED = "finished"
    """The run has ended and nothing asks for more of it."""


class RunFolder:
    """Paths of a local run, and the small files that the supervisor keeps."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def run_file(self) -> Path:
        """The resolved SpinRun."""
        return self.root / "run.yaml"

    @property
    def ledger(self) -> Path:
        """The run's ledger."""
        return self.root / "ledger"

    @property
    def logs(self) -> Path:
        """What the children print."""
        return self.root / "logs"

    @property
    def scratch(self) -> Path:
        """The agents' copies of weights; of no use once they have ended."""
        return self.root / "scratch"

    @property
    def token_file(self) -> Path:
        """Bearer token of the run."""
        return self.root / "token"

    @property
    def last_words_file(self) -> Path:
        """The trainer's termination log."""
        return self.root / "last-words.json"

    @property
    def progress_file(self) -> Path:
        """What rank 0 said last."""
        return self.root / "progress.json"

    @contextmanager
    def locked(self) -> Generator[None]:
        """Make the folder and hold it for this process.

        Raises InvalidInputError when it cannot be written to, CommandError when another process holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("a+")
        except OSError as error:
            raise InvalidInputError(
                f"cannot write to {self.root}: {error.strerror}; choose another folder with --output"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise CommandError(
                    f"another `spinrun local` (pid {holder}) works on {self.root}: wait for it, stop it, or choose another "
                    "folder with --output"
                ) from error
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def is_held(self) -> bool:
        """Whether a `spinrun local` of this machine works on the folder. Looks without taking the lock, at which another that
        starts at this moment would give up."""
        try:
            inode = (self.root / "lock").stat().st_ino
            locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        except OSError:
            return False
        return any(fields[1] == "FLOCK" and fields[5].endswith(f":{inode}") for fields in locks if len(fields) > 5)

    def adopt(self, wanted: SpinRun, *, resume: bool, again: bool = False) -> tuple[SpinRun, Start]:
        """The run to go on with, its uid in it, written to run.yaml; and what kind of start this is.

        Raises InvalidInputError when a run is there and may not be touched, or is not the same as the one wanted.
        """
        if again and self.run_file.exists():
            self._move_aside()
        if not self.run_file.exists():
            return self._begin(wanted), Start.NEW
        try:
            present = read_run(self.run_file)
        except InvalidDocumentError as error:
            raise InvalidInputError(f"{error}; restore the file, or choose another folder with --output") from error
        if not resume:
            raise InvalidInputError(
                f"{self.root} holds the run {present.metadata.name}: go on with it by --resume, start anew by --again, or choose "
                "another folder with --output"
            )
        if differences := changed_fields(present, wanted):
            lines = "\n".join(f"  {line}" for line in differences)
            raise InvalidInputError(
                f"{self.root} holds a run with another spec; it can go on only as it began, but for duration, lifecycle, "
                f"telemetry, rollout.replicas and scorer:\n{lines}\nchange these back, or choose another folder with --output"
            )
        words = self.last_words()
        if words is not None and words.result == "Complete" and present.spec.duration == wanted.spec.duration:
            return present, Start.FINISHED
        run = _identified(wanted, present.metadata.uid)
        self._write_run(run)
        return run, Start.RESUMED

    def prepare(self) -> None:
        """Make what the children need: folders and the token."""
        for folder in (self.ledger, self.logs, self.scratch):
            folder.mkdir(exist_ok=True)
        if not self.token_file.exists():
            descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")

    def attempt(self) -> int:
        """The number of the newest attempt; 0 before there is one."""
        with suppress(OSError, ValueError):
            return int((self.root / "attempt").read_text())
        return 0

    def next_attempt(self) -> int:
        """The number of a new attempt: above every one that was ever given, here or in the ledger."""
        numbers = [self.attempt()]
        with suppress(OSError, ValueError, KeyError, TypeError):
            numbers.append(int(json.loads((self.ledger / "OWNER.json").read_text())["attempt"]))
        number = max(numbers) + 1
        replace_text(self.root / "attempt", f"{number}\n")
        return number

    def last_words(self) -> LastWords | None:
        """What the trainer said as it last ended; None when it said nothing that is understood."""
        try:
            return LastWords.model_validate_json(self.last_words_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def progress(self) -> Progress | None:
        """What rank 0 said last; None when it said nothing that is understood."""
        try:
            return Progress.model_validate_json(self.progress_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def remember_progress(self, progress: Progress) -> None:
        """Keep what rank 0 said, for those who watch. The run goes on without it."""
        with suppress(OSError):
            replace_text(self.progress_file, progress.model_dump_json(by_alias=True))

    def forget_last_words(self) -> None:
        """A new attempt has not ended yet."""
        self.last_words_file.unlink(missing_ok=True)

    def _begin(self, wanted: SpinRun) -> SpinRun:
        strangers = [path.name for path in self.root.iterdir() if path.name != "lock"]
        if strangers:
            raise InvalidInputError(
                f"{self.root} holds other files ({', '.join(sorted(strangers)[:3])}): choose an empty folder with --output"
            )
        run = _identified(wanted, str(uuid.uuid4()))
        self._write_run(run)
        return run

    def _write_run(self, run: SpinRun) -> None:
        replace_text(self.run_file, yaml.safe_dump(run.to_document(), sort_keys=False, allow_unicode=True, width=120))

    def _move_aside(self) -> None:
        """Move everything but the lock, which is held, to the first of DIR.1, DIR.2, … that is free."""
        number = 1
        while (old := self.root.with_name(f"{self.root.name}.{number}")).exists():
            number += 1
        old.mkdir()
        # run.yaml goes last: until then, a move that is cut short leaves a run that is moved again.
        for path in sorted(self.root.iterdir(), key=lambda path: path == self.run_file):
            if path.name != "lock":
                path.rename(old / path.name)


def _identified(run: SpinRun, uid: str | None) -> SpinRun:
    metadata = run.metadata.model_copy(update={"namespace": NAMESPACE, "uid": uid})
    return run.model_copy(update={"metadata": metadata, "status": None})


def changed_fields(present: SpinRun, wanted: SpinRun) -> list[str]:
    """`spec.method.beta: 0.1 there, 0.2 here` for each field in which two runs differ and may not."""
    documents = [_fixed_part(run) for run in (present, wanted)]
    there, here = (dict(_leaves(document)) for document in documents)
    return [
        f"{path}: {there.get(path, 'absent')!r} there, {here.get(path, 'absent')!r} here"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]


def _fixed_part(run: SpinRun) -> dict[str, Any]:
    spec = run.spec.model_copy(update={"method": run.spec.method.resolved()}).to_document()
    for keys in CHANGEABLE:
        block = spec
        for key in keys[:-1]:
            block = block[key]
        block.pop(keys[-1], None)
    return {"metadata": {"name": run.metadata.name}, "spec": spec}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document that is not a mapping, by its path."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{path}.{key}" if path else key)


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole: a crash leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
