"""Which weights a window comes from and is compared with, and whether what the ledger holds agrees."""

from collections.abc import Sequence

from spinrun_protocol.ledger import Manifest, Reference
from spinrun_worker.ledger import Ledger, TornError
from spinrun_worker.trainer.schedule import Schedule

SAMPLES = "samples.parquet"
PAIRS = "pairs.parquet"
BASE = "base.parquet"
"""File of the answers of version 0 to the window's prompts, with the rewards that they got together with the window's own."""
RATES = "rates.parquet"
"""File of the pass rates that are known after the window, where the run asks for them."""


def replayed_file(window: int) -> str:
    """File of the pairs that are replayed from an earlier window, with log-probs under the replaying window's reference."""
    return f"replayed-{window:06d}.parquet"


def window_files(schedule: Schedule, window: int) -> Sequence[str]:
    """Every file of a window, except the base answers and the pass rates of a run that has them."""
    return [SAMPLES, PAIRS, *map(replayed_file, schedule.replayed(window))]


def reference_of(ledger: Ledger, schedule: Schedule, weights: Manifest) -> Reference | None:
    """The weights that the pairs of a window are compared with; None where the loss compares with none.

    Older ones have the digest of those that the window of their own number is compared with: the ledger may hold other weights
    under that version by now. A mixture must be of the version that the window begins with, and of the reference before.

    Args:
        ledger: The ledger.
        schedule: The run's windows.
        weights: The version that the window begins with.

    Raises:
        TornError: The ledger does not hold the window of the reference's number, or the mixture that is the reference.
    """
    version = schedule.reference(weights.version)
    if version is None:
        return None
    if version != weights.version:
        return _compared_with(ledger.manifest("window", version))
    if not schedule.is_mixture(version):
        return Reference(version=version, digest=weights.digest)
    mixture = ledger.manifest("reference", version)
    if mixture.parent != weights.digest or mixture.reference != reference_before(ledger, schedule, version):
        raise TornError(f"{ledger.layout.path('reference', version)} was mixed from other weights than the ledger holds")
    return Reference(version=version, kind="reference", digest=mixture.digest)


def reference_before(ledger: Ledger, schedule: Schedule, window: int) -> Reference:
    """The reference of the window before one that begins with a new reference.

    Raises:
        TornError: The ledger does not hold that window, or the one from which it has its reference.
    """
    first = schedule.reference(window - 1)
    assert first is not None, "a mixture is made of it"
    return _compared_with(ledger.manifest("window", first))


def sampler_of(ledger: Ledger, schedule: Schedule, weights: Manifest) -> Manifest:
    """The weights that answer a window's prompts.

    Args:
        ledger: The ledger.
        schedule: The run's windows.
        weights: The version that the window begins with.

    Raises:
        TornError: They are other weights, which the ledger does not hold.
    """
    version = schedule.sampler(weights.version)
    return weights if version == weights.version else ledger.verify("weights", version, hashes=False)


def check_window(ledger: Ledger, schedule: Schedule, weights: Manifest) -> Manifest:
    """The manifest of the window that begins with these weights.

    Args:
        ledger: The ledger.
        schedule: The run's windows.
        weights: The version that the window begins with.

    Raises:
        TornError: The window is not whole, was sampled from or is compared with other weights than the ledger holds, or replays
            other windows than it should.
    """
    number = weights.version
    directory = ledger.layout.window(number)
    manifest = ledger.verify("window", number)
    sampler = sampler_of(ledger, schedule, weights)
    if manifest.parent != sampler.digest:
        raise TornError(f"{directory} was sampled from other weights than version {sampler.version}")
    wanted = reference_of(ledger, schedule, weights)
    if wanted is not None and _compared_with(manifest) != wanted:
        raise TornError(f"{directory} is compared with other weights than version {wanted.version}")
    if {entry.path for entry in manifest.files} - {BASE, RATES} != {*window_files(schedule, number)}:
        raise TornError(f"{directory} replays other windows than spec.method.replayWindows says")
    return manifest


def _compared_with(window: Manifest) -> Reference:
    if window.reference is not None:
        return window.reference
    if window.parent is None:
        raise TornError(f"the manifest of window {window.number} does not name the weights that it was sampled from")
    return Reference(version=window.version, digest=window.parent)
