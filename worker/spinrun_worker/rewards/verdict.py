"""What a rule is asked, and what it says."""

from dataclasses import dataclass
from typing import Any, Literal

FailureKind = Literal["unusable answer", "too slow", "crashed", "raised", "no number"]


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to judge."""

    prompt_id: str
    prompt: str
    """What the user asks."""
    completion: str
    answer: str | None
    """The true answer."""
    columns: dict[str, Any]
    """The row that the prompt came from."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a completion has no reward.

    unusable answer: the true answer is nothing that the rule can compare with. too slow: the time limit was reached.
    crashed: the judging process died. raised: the rule raised an exception. no number: it returned none, or NaN or infinity.
    """

    kind: FailureKind
    message: str


Verdict = float | Failure


class UnusableAnswerError(ValueError):
    """The true answer is nothing that the rule can compare with: a fault of the data, not of the completion."""
