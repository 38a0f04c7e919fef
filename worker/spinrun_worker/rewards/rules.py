"""Rules that compare texts: pure functions of a completion and the true answer, 1 for right and 0 for wrong."""

import re
from collections.abc import Callable
from functools import lru_cache

import regex

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.rewards import numbers
from spinrun_worker.rewards.letters import settled_letter, stated_letter
from spinrun_worker.rewards.numbers import Number
from spinrun_worker.rewards.score import UnusableAnswerError

_GSM8K_MARKER = "####"


def last_number(completion: str, answer: str) -> float:
    """Whether the last number of the completion equals that of the answer, as a number: 1,000.0 is 1000, and 1/2 is 0.5.

    Raises:
        UnusableAnswerError: The answer holds no number.
    """
    return _equal(numbers.last_number(completion), answer, numbers.last_number(answer))


def gsm8k(completion: str, answer: str) -> float:
    """Like last_number, but a number after the last #### comes first. The answer may be GSM8K's column with its reasoning."""
    return _equal(_gsm8k_number(completion), answer, _gsm8k_number(answer))


def exact(completion: str, answer: str) -> float:
    """Whether the texts are equal, ignoring white space around them. Case matters."""
    return float(completion.strip() == answer.strip())


def choice(completion: str, answer: str) -> float:
    """Whether the letter that the completion settles on is that of the answer.

    An explicit statement, such as "Answer: B" or a boxed letter, comes before a letter that is only marked, such as "(B)" or
    "option B", and that before one in lower case. The last one counts: see `letters`.

    Raises:
        UnusableAnswerError: The answer is not a single letter.
    """
    alone = re.fullmatch(r"\W*([A-Za-z])\W*", answer)
    want = alone[1].upper() if alone is not None else stated_letter(answer)
    if want is None:
        raise UnusableAnswerError(f"the true answer must be one letter such as B or (B), got {answer[:80]!r}")
    return float(settled_letter(completion) == want)


def regex_rule(pattern: str) -> Callable[[str, str | None], float]:
    """A rule that searches the completion for a pattern in which {answer} stands for the true answer, escaped.

    There are patterns that search for ever: run it where it can be killed.

    Raises:
        ConfigurationError: The pattern is not a valid regular expression.
    """

    @lru_cache(maxsize=1024)
    def compiled(answer: str | None) -> "regex.Pattern[str]":
        return regex.compile(pattern if answer is None else pattern.replace("{answer}", regex.escape(answer)))

    try:
        compiled("answer")
    except regex.error as error:
        raise ConfigurationError(f"preference.rule.pattern: is not a valid regular expression: {error}") from error
    return lambda completion, answer: float(compiled(answer).search(completion) is not None)


def _gsm8k_number(text: str) -> Number | None:
    _, marker, tail = text.rpartition(_GSM8K_MARKER)
    marked = numbers.first_number(tail) if marker else None
    return numbers.last_number(text) if marked is None else marked


def _equal(found: Number | None, answer: str, want: Number | None) -> float:
    if want is None:
        raise UnusableAnswerError(f"the true answer must hold a number, got {answer[:80]!r}")
    if want.value is None:
        raise UnusableAnswerError(f"the number of the true answer is too long to be compared: {answer[:80]!r}")
    return float(found is not None and found.equals(want))
