"""Which positions of the stream a window may draw: all, or those whose prompts have a pass rate within bounds.

Which ones depends on the seed, the spec and the ledger alone: on the pass rates that are known after the last window that is
committed whenever a window's prompts are asked for, which with rollouts a window ahead is not the one before it, but the one
before that.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from spinrun_api.spec import PassRateBand
from spinrun_worker.data import PromptStream
from spinrun_worker.records import PassRate, PassRates

QUARTERS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Selected:
    """Positions of the stream."""

    positions: Sequence[int]
    """In order, as many as wanted, or none where an epoch has no prompt inside. One that is inside is so in each later epoch."""
    widened: float = 0.0
    """By how much the bounds were moved apart to find them."""
    note: str = ""
    """What people should know of it: that an epoch had no prompt inside, and how the pass rates are distributed."""


class Selection(Protocol):
    """How positions are selected."""

    def select(self, window: int, start: int, count: int) -> Selected:
        """The next `count` positions that a window may draw, from position `start` on."""
        ...


class AllPrompts:
    """One after the other."""

    def select(self, window: int, start: int, count: int) -> Selected:
        """See `Selection`."""
        del window
        return Selected(range(start, start + count))


class InsideBand:
    """Those whose prompts have a pass rate within bounds, or none, or one that is too old to leave them out for."""

    def __init__(
        self, stream: PromptStream, band: PassRateBand, *, known_after: Callable[[int], PassRates], overlap: int
    ) -> None:
        """Prepare to select.

        Args:
            stream: The prompts.
            band: The bounds.
            known_after: The pass rates that are known after a window.
            overlap: Windows that the rollouts are ahead of the trainer.
        """
        self._stream = stream
        self._band = band
        self._known_after = known_after
        self._overlap = overlap

    def select(self, window: int, start: int, count: int) -> Selected:
        """See `Selection`."""
        return select(self._stream, self._band, self._known_after(window - 1 - self._overlap), start, count)


def select(stream: PromptStream, band: PassRateBand, rates: PassRates, start: int, count: int) -> Selected:
    """Positions of prompts that lie inside. Pure.

    Args:
        stream: The prompts.
        band: The bounds, and what happens where an epoch has no prompt inside.
        rates: The known pass rates.
        start: The first position that is looked at.
        count: How many are wanted.
    """
    low, high, widened, note = band.min, band.max, 0.0, ""

    def is_inside(row: str) -> bool:
        known = rates.get(row)
        return known is None or low <= known.rate <= high

    positions: list[int] = []
    position, outside = start, 0
    while len(positions) < count:
        row, epoch = stream.row(position)
        if is_inside(row) or epoch > rates[row].epoch + band.retry_after_epochs:
            positions.append(position)
            outside = 0
        else:
            outside += 1
        position += 1
        # So many positions may lie in two epochs, or in part of one of a source that gives few prompts: hence the second look.
        if outside and outside % len(stream) == 0 and not any(map(is_inside, stream.rows())):
            if band.when_none == "end":
                return Selected((), widened, none_inside(band, rates))
            # The same positions once more, with bounds that reach the nearest prompt; at last 0 and 1.
            position, outside = position - outside, 0
            nearest = min(max(low - each.rate, each.rate - high) for each in map(rates.__getitem__, stream.rows()))
            widened = round(widened + band.widen_by * max(1, math.ceil(nearest / band.widen_by - 1e-6)), 6)
            low, high = max(0.0, band.min - widened), min(1.0, band.max + widened)
            note = f"{none_inside(band, rates)}. The window takes prompts with pass rates from {low:g} to {high:g}"
    return Selected(positions, widened, note)


def none_inside(band: PassRateBand, rates: PassRates) -> str:
    """That no prompt lies inside, and where they do lie."""
    return (
        f"method.sampling.passRate: for an epoch no prompt has had a pass rate from {band.min:g} to {band.max:g}. "
        f"Prompts by pass rate: {histogram(rates.values())}"
    )


def histogram(rates: Iterable[PassRate]) -> str:
    """How many prompts no answer passed, how many every answer passed, and how many lie in each quarter between the two."""
    counts: dict[str, int] = {"0": 0, **{f"below {quarter:g}": 0 for quarter in QUARTERS}, "1": 0}
    for each in rates:
        if each.rate in (0.0, 1.0):
            counts[f"{each.rate:g}"] += 1
        else:
            counts[next(f"below {quarter:g}" for quarter in QUARTERS if each.rate < quarter)] += 1
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
