"""What a rule or a model is asked, and what it says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from spinrun_protocol.wire import Sample
from spinrun_worker.records import PromptRecord

Groups = Sequence[tuple[PromptRecord, Sequence[Sample]]]
"""Prompts, each with samples that answer it."""
Value = TypeVar("Value")

FailureKind = Literal[
    "unusable answer", "too slow", "crashed", "raised", "no number", "no reply", "server error", "refused", "no answer"
]


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
    Of an endpoint: no reply: the connection failed. server error: a status that says so. refused: it does not take this request.
    no answer: its reply holds none.
    """

    kind: FailureKind
    message: str


Verdict = float | Failure


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
    def of(
        cls, verdicts: "Iterable[tuple[str, Verdict]]", *, what: str = "answers without a reward"
    ) -> "tuple[FailureCount, ...]":
        """The failures among verdicts, which come with their prompts' ids, by kind; the most frequent first."""
        failures: dict[FailureKind, list[FailureCount]] = {}
        for prompt_id, verdict in verdicts:
            if isinstance(verdict, Failure):
                failures.setdefault(verdict.kind, []).append(cls(verdict.kind, 1, prompt_id, verdict.message, what))
        counts = [replace(same[0], count=len(same)) for same in failures.values()]
        return tuple(sorted(counts, key=lambda failure: -failure.count))


@dataclass(frozen=True)
class ScoreResult:
    """The rewards of many samples."""

    rewards: tuple[tuple[float | None, ...], ...]
    """One finite reward a sample, as they were given; None where there is none."""
    failures: tuple[FailureCount, ...]
    """Why samples have no reward, the most frequent reason first."""

    @property
    def messages(self) -> list[str]:
        """The failures as sentences."""
        return [str(failure) for failure in self.failures]

    @classmethod
    def of(cls, groups: Groups, verdicts: Sequence[Verdict]) -> "ScoreResult":
        """The result of one verdict a sample, in the order of the groups."""
        prompt_ids = (prompt.id for prompt, samples in groups for _ in samples)
        rewards = (None if isinstance(verdict, Failure) else verdict for verdict in verdicts)
        return cls(by_group(groups, rewards), FailureCount.of(zip(prompt_ids, verdicts, strict=True)))


def by_group(groups: Groups, values: Iterable[Value]) -> tuple[tuple[Value, ...], ...]:
    """One value a sample, as the samples are grouped."""
    remaining = iter(values)
    return tuple(tuple(next(remaining) for _ in samples) for _, samples in groups)


class UnusableAnswerError(ValueError):
    """The true answer is nothing that the rule can compare with: a fault of the data, not of the completion."""
