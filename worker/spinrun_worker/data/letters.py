"""Simple questions about letters and words: a data set that needs nothing from outside, and whose answers are texts."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from string import ascii_uppercase

from spinrun_worker.data.order import shuffled
from spinrun_worker.data.splits import of_split
from spinrun_worker.errors import ConfigurationError

SOURCE = "letters"
DEFAULT_CONFIG = "sort-2"
MAX_SIZE = 8
MAX_QUESTIONS = 500
"""Of both splits together. Only sort-2 has fewer: there are 325 sets of two letters."""

MAX_DRAWS = 5000
"""Twice what it takes until each of the 325 sets has been drawn."""

_WORDS = """
ant bee cat dog egg fox hat ice jar key log map nut oil pen rug sun tea van wax
bird boat book cake coin desk door drum fish fork frog gate hill king lamp leaf milk moon nest rain road ship snow tree wolf
apple beach bread chair cloud dance eagle field flame glass grape horse house knife lemon mouse night ocean piano plant queen
river shirt snake spoon stone table tiger train water
anchor basket bottle bridge button candle carpet castle cheese circle dragon engine feather forest garden hammer island jacket
kettle ladder letter mirror napkin orange pencil pepper pillow rabbit rocket saddle silver spider summer ticket tunnel turtle
valley violin window winter
balloon biscuit blanket cabbage chicken curtain diamond dolphin giraffe hallway kitchen lantern monster octopus pumpkin
rainbow teacher trumpet umbrella village whisper
airplane bathroom calendar crocodile dinosaur elephant envelope football keyboard mountain necklace notebook sandwich
squirrel sunshine treasure
"""
WORDS = tuple(_WORDS.split())
"""Common nouns of 3 to 9 letters."""


@dataclass(frozen=True)
class _Question:
    key: tuple[str, ...]
    """What two questions must not have in common: the letters or words in a fixed order, however they are shown."""
    prompt: str
    answer: str
    items: str
    """The letters or words as the prompt shows them."""


def _sort(size: int, draw: int) -> _Question:
    letters = [ascii_uppercase[index] for index in shuffled(len(ascii_uppercase), SOURCE, "sort", size, draw)[:size]]
    items, answer = ", ".join(letters), ", ".join(sorted(letters))
    prompt = f"Sort these letters in the order of the alphabet: {items}. Answer with just the letters."
    return _Question(tuple(sorted(letters)), prompt, answer, items)


def _count(size: int, draw: int) -> _Question:
    """Of `size` letters, 1 to `size` are the one that is counted, each number as often: none is the answer to most questions."""
    counted, *others = (ascii_uppercase[index] for index in shuffled(len(ascii_uppercase), SOURCE, "count", size, draw))
    number = 1 + draw % size
    letters = [counted] * number + others[: size - number]
    letters = [letters[place] for place in shuffled(size, SOURCE, "count-places", size, draw)]
    items = ", ".join(letters)
    prompt = f"How many times does the letter {counted} occur in {items}? Answer with just the number."
    return _Question((counted, *letters), prompt, str(number), items)


def _longest(size: int, draw: int) -> _Question | None:
    """None where two words are equally long."""
    words = [WORDS[index] for index in shuffled(len(WORDS), SOURCE, "longest", size, draw)[:size]]
    longest, second = sorted(words, key=len, reverse=True)[:2]
    if len(longest) == len(second):
        return None
    items = f"{', '.join(words[:-1])} or {words[-1]}"
    which = "longer" if size == 2 else "the longest"
    return _Question(tuple(sorted(words)), f"Which word is {which}, {items}? Answer with just the word.", longest, items)


_TASKS: dict[str, Callable[[int, int], _Question | None]] = {"sort": _sort, "count": _count, "longest": _longest}


def questions(config: str | None, split: str, *, block: str) -> list[dict[str, str | int]]:
    """All questions of a split, as rows with the columns prompt, answer and items (the letters or words as they are shown).

    No two questions are about the same letters or words, so that none of `test` is one of `train` in another order. Two fifths
    are `test`, the others `train`.

    Args:
        config: TASK-SIZE; None means sort-2.
        split: train or test.
        block: Name of the spec's block, for messages.

    Raises:
        ConfigurationError: There is no such task, size or split.
    """
    name, size = _parse(config or DEFAULT_CONFIG, block)
    picked = of_split(list(_distinct(_TASKS[name], size)), split, source=SOURCE, block=block)
    return [{"prompt": each.prompt, "answer": each.answer, "items": each.items} for each in picked]


def _distinct(task: Callable[[int, int], _Question | None], size: int) -> Iterator[_Question]:
    """Questions of a task that differ in more than order, as the draws give them."""
    seen: set[tuple[str, ...]] = set()
    for draw in count():
        if len(seen) == MAX_QUESTIONS or draw == MAX_DRAWS:
            return
        question = task(size, draw)
        if question is not None and question.key not in seen:
            seen.add(question.key)
            yield question


def _parse(config: str, block: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)-([0-9])", config)
    if match is None or match[1] not in _TASKS or not 2 <= int(match[2]) <= MAX_SIZE:
        raise ConfigurationError(
            f"{block}.config: must be TASK-SIZE with TASK one of {', '.join(_TASKS)} and SIZE from 2 to {MAX_SIZE}, such as "
            f"{DEFAULT_CONFIG}; got {config!r}"
        )
    return match[1], int(match[2])
