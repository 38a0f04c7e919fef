"""Simple arithmetic questions: a data set that needs nothing from outside."""

import operator
import re

from spinrun_worker.data.order import shuffled
from spinrun_worker.data.splits import of_split
from spinrun_worker.errors import ConfigurationError

SOURCE = "arithmetic"
DEFAULT_CONFIG = "addition-15"
MAX_LARGEST = 1000

_OPERATIONS = {
    "addition": ("+", operator.add),
    "subtraction": ("-", operator.sub),
    "multiplication": ("*", operator.mul),
}


def questions(config: str | None, split: str, *, block: str) -> list[dict[str, str | int]]:
    """All questions of a split, as rows with the columns prompt, answer, a and b.

    Two fifths of all questions, picked by a hash, are `test`, the others `train`: of the 225 of addition-15, 90 and 135.

    Args:
        config: OPERATION-LARGEST; None means addition-15.
        split: train or test.
        block: Name of the spec's block, for messages.

    Raises:
        ConfigurationError: There is no such operation, range or split.
    """
    name, largest = _parse(config or DEFAULT_CONFIG, block)
    sign, compute = _OPERATIONS[name]
    numbers = range(1, largest + 1)
    rows: list[dict[str, str | int]] = [
        {"prompt": f"What is {a} {sign} {b}? Answer with just the number.", "answer": str(compute(a, b)), "a": a, "b": b}
        for a in numbers
        for b in numbers
    ]
    picked = of_split(shuffled(len(rows), SOURCE, name, largest), split, source=SOURCE, block=block)
    return [rows[index] for index in sorted(picked)]


def _parse(config: str, block: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)-([0-9]{1,4})", config)
    if match is None or match[1] not in _OPERATIONS or not 2 <= int(match[2]) <= MAX_LARGEST:
        raise ConfigurationError(
            f"{block}.config: must be OPERATION-LARGEST with OPERATION one of {', '.join(_OPERATIONS)} and LARGEST from 2 to "
            f"{MAX_LARGEST}, such as {DEFAULT_CONFIG}; got {config!r}"
        )
    return match[1], int(match[2])
