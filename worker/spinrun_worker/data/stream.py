"""Which prompts a window draws."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from spinrun_worker.data.order import shuffled
from spinrun_worker.records import PromptRecord


@dataclass(frozen=True)
class Part:
    """The prompts of one source, of several that are mixed."""

    records: Sequence[PromptRecord]
    """At least one; their ids are unique in the whole mixture."""
    name: str = ""
    """Its name, on which its order depends; empty where there is one source."""
    weight: float = 1.0
    """Share of the prompts that it gives, as a part of the sum of all weights."""
    ranks: Sequence[float] | None = None
    """For each prompt a number by which they are drawn within an epoch, the smallest first. None: the seed alone decides."""


class PromptStream:
    """Prompts in an endless order, epoch after epoch, each epoch of a source in an order of its own.

    A position in the stream always holds the same prompt: drawing keeps no state, so a resumed run draws what an undisturbed one
    would have drawn.
    """

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        """Make a stream of the prompts of one source, or of several, by weight.

        After any number of prompts each source has given its share, to within as many prompts as there are sources.

        Args:
            parts: The sources, at least one.
            seed: The spec's shuffleSeed.
        """
        weights = [Fraction(str(part.weight)) for part in parts]
        self._parts = [_Epochs(part, seed) for part in parts]
        self._shares = [weight / sum(weights[index:]) for index, weight in enumerate(weights)]

    def __len__(self) -> int:
        """Number of prompts of all sources together."""
        return sum(len(part) for part in self._parts)

    def rows(self) -> Iterator[str]:
        """The row that each prompt comes from, of all sources, in no order of meaning."""
        return (record.id for part in self._parts for record in part.records)

    def draw(self, start: int, count: int) -> list[PromptRecord]:
        """The `count` prompts from position `start` on; see `at`."""
        return self.at(range(start, start + count))

    def at(self, positions: Iterable[int]) -> list[PromptRecord]:
        """The prompts at some positions.

        Their ids are ROW#EPOCH: a draw that reaches into a new epoch may hold a prompt twice, and ids are unique in a request.
        """
        return [self._at(position) for position in positions]

    def row(self, position: int) -> tuple[str, int]:
        """The row that the prompt at a position comes from, and the epoch of its source, from 0."""
        part, position = self._locate(position)
        record, epoch = part.at(position)
        return record.id, epoch

    def _at(self, position: int) -> PromptRecord:
        part, position = self._locate(position)
        record, epoch = part.at(position)
        return replace(record, id=f"{record.id}#{epoch}")

    def _locate(self, position: int) -> "tuple[_Epochs, int]":
        """The source that a position belongs to, and the position among those of that source.

        Of the positions before the n-th, the first source has the n-th part of its share, rounded up; the others divide what it
        leaves in the same way.
        """
        for part, share in zip(self._parts[:-1], self._shares[:-1], strict=True):
            before, after = (-(-count * share.numerator // share.denominator) for count in (position, position + 1))
            if after > before:
                return part, before
            position -= before
        return self._parts[-1], position


class _Epochs:
    """The prompts of one source, epoch after epoch."""

    def __init__(self, part: Part, seed: int) -> None:
        if not part.records:
            raise ValueError("a prompt stream needs at least one prompt")
        self.records = tuple(part.records)
        self._ranks = part.ranks
        self._key = (seed, part.name) if part.name else (seed,)
        self._order = lru_cache(maxsize=4)(self._order_of)

    def __len__(self) -> int:
        return len(self.records)

    def at(self, position: int) -> tuple[PromptRecord, int]:
        """The prompt at a position of this source's own, and its epoch."""
        epoch, index = divmod(position, len(self.records))
        return self.records[self._order(epoch)[index]], epoch

    def _order_of(self, epoch: int) -> list[int]:
        order = shuffled(len(self.records), "epoch", *self._key, epoch)
        # Sorting is stable: prompts of the same rank stay in this epoch's order.
        return order if self._ranks is None else sorted(order, key=self._ranks.__getitem__)


def row_and_epoch(prompt_id: str) -> tuple[str, int]:
    """The row of the data that a prompt of a stream comes from, and the epoch of its source."""
    row, _, epoch = prompt_id.rpartition("#")
    return row, int(epoch)
