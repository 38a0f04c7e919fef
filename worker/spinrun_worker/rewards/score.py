"""What a rule or a model is shown of a completion, and the reward that comes back, or why there is none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    # A sandbox's process imports this module, and must start fast.
    from spinrun_protocol.wire import Sample
    from spinrun_worker.records import Message, PromptRecord

Groups: TypeAlias = "Sequence[tuple[PromptRecord, Sequence[Sample]]]"
"""Prompts, each with samples that answer it."""
Value = TypeVar("Value")

FailureKind = Literal[
    "unusable answer",
    "cut off",
    "too slow",
    "crashed",
    "raised",
    "no number",
    "no reply",
    "server error",
    "refused",
    "no answer",
]


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to score."""

    prompt_id: str
    prompt: str
    """What the user asks: the last message of theirs."""
    completion: str
    answer: str | None
    """The true answer."""
    columns: dict[str, Any]
    """The row that the prompt came from."""
    conversation: "tuple[Message, ...]" = ()
    """Every message before the completion; empty where the prompt is a single text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a completion has no reward."""

    kind: FailureKind
    """Of a rule:

    - unusable answer: the rule cannot compare with the true answer;
    - cut off: it was cut off at maxTokens, and such answers are to be dropped;
    - too slow: the time limit was reached;
    - crashed: the rule's process died;
    - raised: the rule raised an exception;
    - no number: the rule returned something other than a finite number.

    Of an endpoint:

    - too slow: no reply within the time limit;
    - no reply: the connection failed;
    - server error: a status that says so;
    - refused: the server does not accept this request;
    - no answer: the reply holds none.
    """

    message: str


Score = float | Failure
"""The reward of a completion, or why it has none."""


@dataclass(frozen=True)
class FailureCount:
    """What has no reward for the same reason."""

    kind: FailureKind
    count: int
    prompt_id: str
    """Prompt of the first of them."""
    message: str
    """What happened to that one."""
    what: str = "answers without a reward"

    def __str__(self) -> str:
        return f"{self.what}: {self.count} ({self.kind}); the first, of prompt {self.prompt_id}: {self.message}"

    @classmethod
    def of(cls, scores: "Iterable[tuple[str, Score]]", *, what: str = "answers without a reward") -> "tuple[FailureCount, ...]":
        """Count failures by kind, the most frequent first.

        Args:
            scores: Scores with their prompts' ids.
            what: What a failure leaves behind, in the plural, for messages.
        """
        failures: dict[FailureKind, list[FailureCount]] = {}
        for prompt_id, score in scores:
            if isinstance(score, Failure):
                failures.setdefault(score.kind, []).append(cls(score.kind, 1, prompt_id, score.message, what))
        counts = [replace(same[0], count=len(same)) for same in failures.values()]
        return tuple(sorted(counts, key=lambda failure: -failure.count))


@dataclass(frozen=True)
class ScoreResult:
    """The rewards of many samples."""

    rewards: tuple[tuple[float | None, ...], ...]
    """One finite reward per sample, grouped as the samples were; None where there is none."""
    failures: tuple[FailureCount, ...]
    """Why samples have no reward, the most frequent reason first."""

    @property
    def messages(self) -> list[str]:
        """The failures as sentences."""
        return [str(failure) for failure in self.failures]

    @classmethod
    def of(cls, groups: Groups, scores: Sequence[Score]) -> "ScoreResult":
        """The result of one score per sample, in the order of the groups."""
        prompt_ids = (prompt.id for prompt, samples in groups for _ in samples)
        rewards = (None if isinstance(score, Failure) else score for score in scores)
        return cls(by_group(groups, rewards), FailureCount.of(zip(prompt_ids, scores, strict=True)))


def by_group(groups: Groups, values: Iterable[Value]) -> tuple[tuple[Value, ...], ...]:
    """One value per sample, grouped as the samples are."""
    remaining = iter(values)
    return tuple(tuple(next(remaining) for _ in samples) for _, samples in groups)


class UnusableAnswerError(ValueError):
    """The rule cannot compare with the true answer: a fault of the data, not of the completion."""
