"""A crash between any two changes to the volume leaves a directory that is whole, or one that does not count.

Two kinds of crash, at each change that the scenario makes: the process dies, and what it did so far is there; or the machine
loses power, and of what was not yet made durable any part may be there or not.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spinrun_protocol.ledger import Owner
from spinrun_worker.ledger import Ledger, LedgerError, LedgerWriter, TornError, durable, read_metrics

OLD = {"config.json": b"old", "model.safetensors": b"0" * 100, "inner/only-old": b"x"}
# Same names and sizes as far as possible: what is mixed up must still be found out.
NEW = {"config.json": b"new", "model.safetensors": b"1" * 100, "only-new": b"y"}


class Crash(BaseException):
    """Not an error that a handler would tidy up after: the process is gone."""


def crash_at(change: int) -> None:
    """Let the process die before its change number `change`, counted from 0."""
    count = 0

    def observe(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count > change:
            raise Crash

    durable.observe = observe


def crashes(prepare: Callable[[], None], scenario: Callable[[], None]) -> Iterator[int]:
    """Run the scenario again and again, dying at each of its changes in turn, until it gets to its end."""
    for change in range(10_000):
        prepare()
        crash_at(change)
        try:
            scenario()
        except Crash:
            durable.observe = None
            yield change
        else:
            durable.observe = None
            assert change > 0
            return


def digest_of(ledger: Ledger, kind, number) -> str | None:
    """What a reader would take: the digest of a directory that counts, None when it does not."""
    try:
        return ledger.verify(kind, number).digest
    except TornError:
        return None


@pytest.fixture
def fresh(root: Path, uid: str) -> Callable[[], LedgerWriter]:
    """Empties the volume and claims a new ledger on it."""

    def fresh() -> LedgerWriter:
        shutil.rmtree(root, ignore_errors=True)
        writer = LedgerWriter(root, uid, attempt=1)
        writer.claim()
        return writer

    return fresh


def test_process_that_dies_while_it_writes_leaves_nothing_that_counts(fresh, put, root, uid):
    num_crashes = 0
    for _ in crashes(fresh, lambda: put(LedgerWriter(root, uid, 1), "weights", 1, NEW)):
        num_crashes += 1
        committed = digest_of(Ledger(root, uid), "weights", 1)
        restarted = LedgerWriter(root, uid, 2)
        restarted.claim()
        assert committed in (None, put(restarted, "weights", 1, NEW).digest)
        assert restarted.numbers("weights") == [1]
    assert num_crashes > 20


def test_process_that_dies_while_it_writes_again_never_leaves_a_mixture(fresh, put, root, uid):
    def prepare() -> None:
        put(fresh(), "weights", 1, OLD)

    prepare()
    old = digest_of(Ledger(root, uid), "weights", 1)
    new = put(LedgerWriter(root, uid, 1), "weights", 1, NEW).digest
    seen = set()
    for _ in crashes(prepare, lambda: put(LedgerWriter(root, uid, 1), "weights", 1, NEW)):
        seen.add(digest_of(Ledger(root, uid), "weights", 1))
    assert seen == {old, None, new}


def test_process_that_dies_while_it_deletes_leaves_the_whole_or_nothing_that_counts(fresh, put, root, uid):
    def prepare() -> None:
        put(fresh(), "checkpoint", 16, OLD)

    prepare()
    old = digest_of(Ledger(root, uid), "checkpoint", 16)
    for _ in crashes(prepare, lambda: LedgerWriter(root, uid, 1).delete("checkpoint", 16)):
        assert digest_of(Ledger(root, uid), "checkpoint", 16) in (None, old)
        LedgerWriter(root, uid, 1).delete("checkpoint", 16)
        assert not Ledger(root, uid).layout.checkpoint(16).exists()


def test_process_that_dies_while_it_claims_leaves_an_owner_that_can_be_read(fresh, root, uid):
    for _ in crashes(lambda: shutil.rmtree(root, ignore_errors=True), lambda: LedgerWriter(root, uid, 1).claim()):
        LedgerWriter(root, uid, 2).claim()
    for _ in crashes(fresh, lambda: LedgerWriter(root, uid, 2).claim()):
        owner = Owner.model_validate_json((root / "OWNER.json").read_bytes())
        assert owner.attempt in (1, 2)
        LedgerWriter(root, uid, 3).claim()


def test_process_that_dies_while_it_writes_metrics_loses_no_earlier_line(fresh, root, uid, step_line):
    def prepare() -> None:
        writer = fresh()
        writer.append_metrics(step_line(1))
        writer.close()
        with writer.layout.metrics.open("ab") as file:
            file.write(b'{"event": "st')

    def scenario() -> None:
        writer = LedgerWriter(root, uid, 1)
        writer.append_metrics(step_line(2))
        writer.close()

    for _ in crashes(prepare, scenario):
        assert [line.step for line in read_metrics(root / "metrics.jsonl")] in ([1], [1, 2])


@dataclass(eq=False)
class Inode:
    """A file as the machine sees it, and what of it survives a loss of power."""

    content: bytes = b""
    durable: bytes = b""


@dataclass
class Volume:
    """What a loss of power may leave of a folder: a model of names and contents, kept by watching every change.

    A content is safe after fsync of the file; a name, new, gone or replaced, after fsync of its directory. Of the rest each part
    may or may not have reached the disk, in any order.
    """

    root: Path
    names: dict[Path, Inode | None] = field(default_factory=dict)  # as the machine sees it; None is a directory
    safe: dict[Path, Inode | None] = field(default_factory=dict)  # as it surely is on the disk
    pending: list[tuple[Path, Inode | None, bool]] = field(default_factory=list)  # (name, what, whether it is there)
    last: tuple[str, Path] | None = None

    def settle(self) -> None:
        """Take in the change that was announced last, which has happened by now."""
        if self.last is None:
            return
        operation, path = self.last
        self.last = None
        inode = self.names.get(path)
        match operation:
            case "mkdir":
                self._link(path, None)
            case "create" if path not in self.names:
                self._link(path, Inode())
            case "write" | "truncate":
                assert inode is not None
                inode.content = path.read_bytes()
            case "fsync":
                assert inode is not None
                inode.durable = inode.content
            case "replace":
                source = next(
                    name for name in self.names if name.parent == path.parent and name.name.startswith(f".{path.name}.")
                )
                moved = self.names[source]
                self._unlink(source)
                self._link(path, moved)
            case "unlink" | "rmdir" if path in self.names:
                self._unlink(path)
            case "fsync_directory":
                self._apply([change for change in self.pending if change[0].parent == path])
                self.pending = [change for change in self.pending if change[0].parent != path]
            case _:
                pass

    def _link(self, path: Path, inode: Inode | None) -> None:
        self.names[path] = inode
        self.pending.append((path, inode, True))

    def _unlink(self, path: Path) -> None:
        self.pending.append((path, self.names.pop(path), False))

    def _apply(self, changes: list[tuple[Path, Inode | None, bool]]) -> None:
        for path, inode, there in changes:
            if there:
                self.safe[path] = inode
            else:
                self.safe.pop(path, None)

    def lose_power(self, target: Path, chance: random.Random) -> None:
        """Make in `target` one of the trees that the disk may hold now."""
        survivor = Volume(self.root, safe=dict(self.safe))
        survivor._apply([change for change in self.pending if chance.random() < 0.5])
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in sorted(survivor.safe):
            inode, place = survivor.safe[path], target / path.relative_to(self.root)
            with suppress(FileNotFoundError):  # its directory's name did not survive
                if inode is None:
                    place.mkdir()
                else:
                    unsafe = [inode.content, inode.content[: chance.randint(0, len(inode.content))]]
                    place.write_bytes(chance.choice([inode.durable, *(unsafe if inode.content != inode.durable else [])]))


def test_power_lost_at_any_moment_never_leaves_a_directory_that_counts_and_is_wrong(tmp_path, uid, put, step_line):
    """Claim, write, write again, delete and claim again; before each change lose power in ten ways."""
    root, broken = tmp_path / "root", tmp_path / "broken"
    root.mkdir()
    volume, chance = Volume(tmp_path, names={root: None}, safe={root: None}), random.Random(0)
    old = content_of(put, LedgerWriter(tmp_path / "scratch-old", uid, 1), OLD)
    new = content_of(put, LedgerWriter(tmp_path / "scratch-new", uid, 1), NEW)
    allowed: set[str | None] = {None}
    seen: set[str | None] = set()

    def check() -> None:
        for _ in range(10):
            volume.lose_power(broken, chance)
            ledger = Ledger(broken / "root", uid)
            found = digest_of(ledger, "weights", 1) if ledger.root.exists() else None
            assert found in allowed
            seen.add(found)
            owner = ledger.layout.owner
            assert not owner.exists() or Owner.model_validate_json(owner.read_bytes()).attempt in (1, 2)

    def observe(operation: str, path: Path) -> None:
        volume.settle()
        check()
        volume.last = (operation, path)

    def then(*digests: str | None) -> None:
        """What is done is durable: from here on only these may be found."""
        nonlocal allowed
        volume.settle()
        allowed = set(digests)
        check()

    durable.observe = observe
    writer = LedgerWriter(root, uid, 1)
    writer.claim()
    allowed = {None, old}
    put(writer, "weights", 1, OLD)
    then(old)
    allowed = {old, None, new}
    put(writer, "weights", 1, NEW)
    then(new)
    LedgerWriter(root, uid, 2).claim()
    then(new)
    allowed = {new, None}
    LedgerWriter(root, uid, 2).delete("weights", 1)
    then(None)
    assert seen == {None, old, new}


def content_of(put, writer: LedgerWriter, files: dict[str, bytes]) -> str:
    writer.claim()
    return put(writer, "weights", 1, files).digest


def test_older_attempt_that_continues_unaware_leaves_nothing_wrong_that_counts(root, uid, put):
    """Before each change of an older attempt a newer one comes and writes the same directory; then the older one continues."""
    older, newer = LedgerWriter(root, uid, 1), LedgerWriter(root, uid, 2)
    older.claim()
    digests = {put(older, "weights", 1, OLD).digest, put(older, "weights", 1, NEW).digest, None}
    seen: set[str | None] = set()
    change = 0
    for change in range(10_000):
        shutil.rmtree(root)
        older.claim()
        come = iter([False] * change + [True])

        def observe(operation: str, path: Path, come: Iterator[bool] = come) -> None:
            if next(come, False):
                durable.observe = None
                newer.claim()
                put(newer, "weights", 1, NEW)

        durable.observe = observe
        with suppress(LedgerError):
            put(older, "weights", 1, OLD)
        if durable.observe is not None:
            break  # the older one was done before the newer one came
        seen.add(digest_of(newer, "weights", 1))
    assert change > 20
    assert seen <= digests
