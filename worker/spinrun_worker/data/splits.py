"""The splits of the built-in generators, which are the same for all of them."""

from collections.abc import Sequence
from typing import TypeVar

from spinrun_worker.errors import ConfigurationError

Item = TypeVar("Item")


def of_split(items: Sequence[Item], split: str, *, source: str, block: str) -> Sequence[Item]:
    """The items of a split: the first two fifths of all are `test`, the others `train`.

    Args:
        items: All that the generator has, in random order.
        split: train or test.
        source: The generator's name.
        block: Name of the spec's block, for messages.

    Raises:
        ConfigurationError: There is no such split.
    """
    if split not in ("train", "test"):
        raise ConfigurationError(f"{block}.split: {source} has the splits train and test, got {split!r}")
    num_test = len(items) * 2 // 5
    return items[:num_test] if split == "test" else items[num_test:]
