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

    references: tuple[int, ...] = ()
    """Mixed references, ascending."""


def collectable(
    *,
    weights: Collection[int],
    checkpoints: Collection[int],
    keep_checkpoints: int,
    acknowledged: Collection[int],
    newest: int,
    needed: Collection[int],
) -> Collectable:
    """Which directories may be deleted. Pure.

    A version may go once every live agent has acknowledged a newer one. While no agent is live none may go: one may just be
    starting to read, and without agents no new version fills the volume. Version 0 is like any other, except that it stays as
    long as there is no checkpoint, because a restart then begins with it.

    Args:
        weights: Versions on the ledger.
        checkpoints: Steps of the checkpoints on the ledger.
        keep_checkpoints: How many of the newest checkpoints stay, at least one.
        acknowledged: The version that each live agent serves, -1 for one that serves none yet.
        newest: The version that agents are told to serve. It stays, and so does every later one, which an earlier attempt left
            and this one will write again.
        needed: Versions that may still be read: the references of the current window and of every kept checkpoint, and the best
            version.

    Raises:
        ValueError: keep_checkpoints is less than 1.
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
    mixtures_read_by: Callable[[int], Collection[int]] = lambda _: (),
) -> Collectable:
    """Delete what `collectable` allows, and what interrupted writes and deletions have left behind.

    Args:
        writer: The ledger.
        keep_checkpoints: As for `collectable`.
        acknowledged: As for `collectable`.
        newest: As for `collectable`.
        needed: As for `collectable`; what the newest window and the kept checkpoints' windows read need not be in it.
        read_by: The versions that a window reads besides the one of its own number.
        mixtures_read_by: The mixed references that a window reads.

    Returns:
        What was deleted.

    Raises:
        SupersededError: A newer attempt owns the ledger.
        LedgerUnavailableError: The volume refuses.
        ForeignError: A directory is another run's.
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
    # Nothing before the newest checkpoint is still being written, so whatever does not count there is a leftover.
    leftovers = [step for step in writer.present("checkpoint") if kept and step < kept[-1] and step not in checkpoints]
    # As with versions, those from the newest on stay: an earlier attempt left them, and this one will write them again.
    mixtures = {*chain.from_iterable(map(mixtures_read_by, windows))}
    references = tuple(number for number in writer.present("reference") if number < newest and number not in mixtures)
    gone = Collectable(found.weights, tuple(sorted((*found.checkpoints, *leftovers))), references)
    for step in gone.checkpoints:
        writer.delete("checkpoint", step)
    for version in gone.weights:
        writer.delete("weights", version)
    for number in gone.references:
        writer.delete("reference", number)
    return gone
