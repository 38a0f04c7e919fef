"""One run's ledger: what a reader may trust, and how its one writer changes it.

A directory counts once its MANIFEST.json exists. The writer removes the manifest before it touches anything else in a directory,
and writes it after everything else, each step durable before the next. A crash thus leaves a directory that counts and is whole,
or one that does not count.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from spinrun_api.redaction import redacted
from spinrun_protocol.ledger import MANIFEST, Drawn, FileEntry, Kind, Manifest, MetricsLine, Owner, Reference, RunRecord
from spinrun_worker.ledger import durable
from spinrun_worker.ledger.errors import ForeignError, LedgerUnavailableError, SupersededError, TornError
from spinrun_worker.ledger.files import empty_directory, flush_tree, is_directory, read_record, write_record
from spinrun_worker.ledger.layout import Layout
from spinrun_worker.ledger.manifest import check_content, content_digest, read_manifest, superseded
from spinrun_worker.ledger.metrics import MetricsFile


class Ledger:
    """A reader. It changes nothing, so a read-only mount will do."""

    def __init__(self, root: Path, uid: str) -> None:
        """Look at nothing yet.

        Args:
            root: The run's own folder.
            uid: The run's uid; directories of other runs are refused.
        """
        self.root = root
        self.uid = uid
        self.layout = Layout(root)

    def manifest(self, kind: Kind, number: int) -> Manifest:
        """The manifest of a directory.

        Raises:
            TornError: The manifest is missing or not valid.
            ForeignError: It is another run's, or of another kind or number.
            LedgerUnavailableError: The volume is gone or does not let it be read.
        """
        directory = self.layout.path(kind, number)
        try:
            manifest = read_manifest(directory)
        except TornError:
            self._require_root()
            raise
        if manifest.uid != self.uid:
            raise ForeignError(f"{directory} belongs to run {manifest.uid}, not to {self.uid}: move it away")
        if (manifest.kind, manifest.number) != (kind, number):
            raise ForeignError(f"{directory} holds {manifest.kind} {manifest.number}: it has been moved there")
        return manifest

    def verify(self, kind: Kind, number: int, *, hashes: bool = True) -> Manifest:
        """The manifest of a directory that agrees with it: these files and no others, their sizes, and their content.

        Args:
            kind: What the directory holds.
            number: Its version, window or step.
            hashes: False skips the content, which takes as long as reading it.

        Raises:
            TornError: The manifest is missing or not valid, or a file differs; the message names the first such file.
            ForeignError: It is another run's, or of another kind or number.
            LedgerUnavailableError: The volume is gone or does not let it be read.
        """
        manifest = self.manifest(kind, number)
        check_content(self.layout.path(kind, number), manifest.files, hashes=hashes)
        return manifest

    def numbers(self, kind: Kind) -> list[int]:
        """Numbers of this run's committed directories, ascending. Compares names and sizes, without reading the content.

        Torn and foreign directories are left out, and so are weights and checkpoints that a newer attempt has superseded: none of
        them may be served or resumed from.
        """
        manifests: list[Manifest] = []
        for number in self.present(kind):
            with suppress(TornError, ForeignError):
                manifests.append(self.verify(kind, number, hashes=False))
        # A window or an evaluation names the weights that it was sampled from, and is valid as long as they are.
        stale = superseded(manifests) if kind in ("weights", "checkpoint") else set[int]()
        return [manifest.number for manifest in manifests if manifest.number not in stale]

    def present(self, kind: Kind) -> list[int]:
        """Numbers of the directories that exist, in whatever state, ascending."""
        folder = self.layout.folder(kind)
        if not is_directory(folder):
            self._require_root()
            return []
        with durable.unavailable(folder, "list"):
            numbers = [self.layout.number(kind, path.name) for path in folder.iterdir()]
        return sorted(number for number in numbers if number is not None)

    def _require_root(self) -> None:
        if not is_directory(self.root):
            raise LedgerUnavailableError(
                f"The ledger {self.root} does not exist: check that its volume is mounted and that the trainer has started"
            )


class LedgerWriter(Ledger):
    """The one writer: rank 0 of the newest attempt. Before each change it checks that it still is.

    There are no locks, which NFS would not honour. Whatever two writers could mix up within one directory disagrees with its
    manifest, and no reader accepts it.
    """

    def __init__(self, root: Path, uid: str, attempt: int) -> None:
        """Change nothing yet; see `claim`.

        Args:
            root: The run's own folder.
            uid: The run's uid.
            attempt: Number of the attempt, from 1; the newest one owns the ledger.
        """
        super().__init__(root, uid)
        self.attempt = attempt
        self._metrics: MetricsFile | None = None

    def claim(self) -> None:
        """Make the ledger this attempt's, and create it where it is missing. Idempotent.

        Raises:
            SupersededError: A newer attempt owns it.
            ForeignError: Another run owns it.
            TornError: OWNER.json is not valid.
        """
        durable.make_directories(self.root)
        owner = read_record(self.layout.owner, Owner)
        if owner is None or self._outranks(owner):
            write_record(self.layout.owner, Owner(uid=self.uid, attempt=self.attempt))

    def begin(self, kind: Kind, number: int) -> Path:
        """An empty directory to write into. What was there stops counting before any of it is removed.

        Raises:
            ForeignError: The directory is another run's.
        """
        self._require_ownership()
        directory = self.layout.path(kind, number)
        self._revoke(directory)
        durable.make_directories(directory)
        return directory

    def commit(
        self,
        kind: Kind,
        number: int,
        files: Iterable[FileEntry],
        *,
        step: int,
        version: int,
        parent: str | None = None,
        reference: Reference | None = None,
        drawn: Drawn | None = None,
    ) -> Manifest:
        """Make a directory count. All ranks must have written and closed their files.

        Args:
            kind: What the directory holds.
            number: Its version, window or step.
            files: All of its files, in any order.
            step: See Manifest.
            version: See Manifest.
            parent: See Manifest.
            reference: See Manifest.
            drawn: See Manifest.

        Returns:
            The manifest, which is now in the directory.

        Raises:
            TornError: The directory holds other files, or files of other sizes. It then does not count.
        """
        self._require_ownership()
        entries = tuple(sorted(files, key=lambda entry: entry.path))
        manifest = Manifest(
            kind=kind,
            number=number,
            uid=self.uid,
            version=version,
            step=step,
            attempt=self.attempt,
            parent=parent,
            reference=reference,
            drawn=drawn,
            files=entries,
            digest=content_digest(kind, number, self.uid, entries),
        )
        directory = self.layout.path(kind, number)
        check_content(directory, entries, hashes=False)
        flush_tree(directory)
        # Flushing gigabytes takes a while, in which a newer attempt may have started.
        self._require_ownership()
        write_record(directory / MANIFEST, manifest)
        return manifest

    def delete(self, kind: Kind, number: int) -> None:
        """Remove a directory, committed or not, if it exists. It stops counting first.

        Raises:
            ForeignError: The directory is another run's.
        """
        self._require_ownership()
        directory = self.layout.path(kind, number)
        self._revoke(directory)
        durable.remove_directory(directory)

    def append_metrics(self, line: MetricsLine) -> None:
        """Add a line to metrics.jsonl; `sync` or `close` makes it durable."""
        self._require_ownership()
        if self._metrics is None:
            self._metrics = MetricsFile(self.layout.metrics)
        self._metrics.append(line)

    def sync(self) -> None:
        """Wait until the metrics written so far are on the volume."""
        if self._metrics is not None:
            self._metrics.sync()

    def close(self) -> None:
        """Make the metrics durable and close their file. The writer may be used again."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def write_run_record(self, record: RunRecord) -> None:
        """Put run.json in place, atomically, and without secrets."""
        self._require_ownership()
        write_record(self.layout.run_record, record.model_copy(update={"run": redacted(record.run)}))

    def _require_ownership(self) -> None:
        owner = read_record(self.layout.owner, Owner)
        if owner is None:
            raise LedgerUnavailableError(
                f"{self.layout.owner} does not exist: the volume lost the ledger, or it was never claimed; start a new attempt"
            )
        if self._outranks(owner):
            # An older attempt claimed at the same moment, and wrote last.
            write_record(self.layout.owner, Owner(uid=self.uid, attempt=self.attempt))

    def _outranks(self, owner: Owner) -> bool:
        """Whether this attempt is newer than the owner; False when it is the owner."""
        if owner.uid != self.uid:
            raise ForeignError(f"{self.root} belongs to run {owner.uid}, not to {self.uid}: give each run a folder of its own")
        if owner.attempt > self.attempt:
            raise SupersededError(
                f"Attempt {owner.attempt} owns {self.root}, so attempt {self.attempt} stops here: let the newer one continue"
            )
        return owner.attempt < self.attempt

    def _revoke(self, directory: Path) -> None:
        """Make a directory not count, durably, and then empty it."""
        if not is_directory(directory):
            durable.unlink(directory)  # usually there is nothing; a link or a file has no business in its place
            return
        with suppress(TornError):
            if (uid := read_manifest(directory).uid) != self.uid:
                raise ForeignError(f"{directory} belongs to run {uid}, not to {self.uid}: move it away")
        durable.unlink(directory / MANIFEST)
        durable.fsync_directory(directory)
        empty_directory(directory)
