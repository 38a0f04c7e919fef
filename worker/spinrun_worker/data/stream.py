"""Which prompts a window draws."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from spinrun_worker.data.order import shuffled
from spinrun_worker.records import PromptRecord


class PromptStream:
    """Prompts in an endless order, epoch after epoch, each epoch in an order of its own.

    A position in the stream always holds the same prompt: drawing keeps no state, so a resumed run draws what an undisturbed one
    would have drawn.
    """

    def __init__(self, records: Sequence[PromptRecord], seed: int) -> None:
        """Make a stream.

        Args:
            records: The prompts, at least one.
            seed: The spec's shuffleSeed.
        """
        if not records:
            raise ValueError("a prompt stream needs at least one prompt")
        self._records = tuple(records)
        self._seed = seed

    def __len__(self) -> int:
        """Number of prompts in an epoch."""
        return len(self._records)

    def draw(self, start: int, count: int) -> list[PromptRecord]:
        """The `count` prompts from position `start` on.

        Their ids are ROW#EPOCH: a draw that reaches into a new epoch may hold a prompt twice, and ids are unique in a request.
        """
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> PromptRecord:
        epoch, index = divmod(position, len(self._records))
        record = self._records[_epoch_order(len(self._records), self._seed, epoch)[index]]
        return replace(record, id=f"{record.id}#{epoch}")


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    return shuffled(count, "epoch", seed, epoch)
