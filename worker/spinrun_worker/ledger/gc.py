"""What a ledger no longer needs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain

from spinrun_worker.ledger.ledger import LedgerWriter


@dataclass(frozen=True)
class Collectable:
    """Directories that nobody reads any more."""

    weights: tuple[int, ...]
    """Versions, ascending."""

    checkpoints: tuple[int, ...]
    """Steps, ascending."""


def collectable(
    *,
    weights: Collection[int],
    checkpoints: Collection[int],
    keep_checkpoints: int,
    acknowledged: Collection[int],
    newest: int,
    needed: Collection[int],
) -> Collectable:
    """Which directories may go. Pure.

    weights, checkpoints: versions and steps that are there. keep_checkpoints: so many newest ones stay, at least one.
    acknowledged: for each live agent the version that it serves, -1 for one that serves none yet. newest: the version that agents
    are told to serve; it stays, and so does every later one, which an earlier attempt left and this one writes again. needed:
    versions that something may read yet: the references of the window under way and of every kept checkpoint, the best version.

    A version goes when each live agent has acknowledged a newer one. Without any live agent none goes: one may just be starting
    to read, and without agents no new version fills the volume. Version 0 is like any other, except that it stays as long as
    there is no checkpoint, because a restart then begins with it.
    """
    if keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints must be at least 1, got {keep_checkpoints}: a restart needs the newest one")
    oldest_read = min([newest, *acknowledged]) if acknowledged else 0
    kept = {newest, *needed, *(() if checkpoints else (0,))}
    return Collectable(
        weights=tuple(sorted(version for version in weights if version < oldest_read and version not in kept)),
        checkpoints=tuple(sorted(checkpoints)[:-keep_checkpoints]),
    )


def collect(
    writer: LedgerWriter,
    *,
    keep_checkpoints: int,
    acknowledged: Collection[int],
    newest: int,
    needed: Collection[int],
    read_by: Callable[[int], Collection[int]],
) -> Collectable:
    """Delete what `collectable` allows, and what interrupted writes and deletions have left; returns what is gone.

    read_by: the versions that a window needs beside the one of its own number. Those of the newest window and of the kept
    checkpoints' windows need not be named here. Raises as LedgerWriter.delete does.
    """
    checkpoints = writer.numbers("checkpoint")
    kept = checkpoints[-keep_checkpoints:]
    # A version has the number of the window that begins with it.
    windows = {newest, *(writer.manifest("checkpoint", step).version for step in kept)}
    found = collectable(
        weights=writer.present("weights"),
        checkpoints=checkpoints,
        keep_checkpoints=keep_checkpoints,
        acknowledged=acknowledged,
        newest=newest,
        needed={*needed, *windows, *chain.from_iterable(map(read_by, windows))},
    )
    # Before the newest checkpoint nothing is being written any more, so that whatever does not count there is a remainder.
    remainders = [step for step in writer.present("checkpoint") if kept and step < kept[-1] and step not in checkpoints]
    gone = Collectable(found.weights, tuple(sorted((*found.checkpoints, *remainders))))
    for step in gone.checkpoints:
        writer.delete("checkpoint", step)
    for version in gone.weights:
        writer.delete("weights", version)
    return gone
