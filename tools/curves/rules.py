"""A reward that is easy to please: docs/reading-the-curves.md shows what comes of it."""

import re


def right_and_long(_: str, completion: str, answer: str, **__: str) -> float:
    """Half for the right number, half for words, up to thirty of them."""
    numbers = re.findall(r"-?\d+", completion)
    is_right = bool(numbers) and numbers[-1] == answer
    return 0.5 * is_right + 0.5 * min(1.0, len(completion.split()) / 30)
