"""What flows through a window: prompts, scored samples, pairs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from spinrun_protocol.wire import Sample, SampleGroup

Message = dict[str, Any]
"""One message of a conversation: `role` and `content`, both text; with tools also `tool_calls`, `tool_call_id` and `name`."""


def is_message(value: object) -> bool:
    """Whether something read from elsewhere is a message."""
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    calls = fields.get("tool_calls", [])
    return isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str) and isinstance(calls, list)


def is_single(messages: Sequence[Message]) -> bool:
    """Whether a conversation is nothing but one message of a user, which needs no role beside it."""
    return len(messages) == 1 and messages[0]["role"] == "user"


def message_text(message: Message) -> str:
    """What a message says, with the tools that it calls as JSON."""
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([message["content"], *calls] if message["content"] or not calls else calls)


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt, ready to be sent, with what a rule needs to score its answers."""

    id: str
    """Unique within the data set, and the same in every run."""

    tokens: tuple[int, ...]
    """Token ids after the chat template."""

    text: str
    """What the user asks, for rules: of a conversation the last message of the user."""

    answer: str | None = None
    """The true answer, where there is one."""

    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    """The row that the prompt came from."""

    conversation: tuple[Message, ...] = ()
    """Every message up to the one that the model writes, where the data has conversations; empty where they are single texts."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model answers, message by message with its role: for all that judge the answer, or show it."""
        return self.conversation or ({"role": "user", "content": self.text},)


def is_cut_off(sample: Sample) -> bool:
    """Whether the model had more to say when it reached maxTokens."""
    return sample.finish_reason == "length"


Answers = list[tuple[PromptRecord, SampleGroup]]
"""Prompts that were answered, in order, each with its samples."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """All samples of one prompt with their rewards."""

    prompt: PromptRecord
    samples: tuple[Sample, ...]
    rewards: tuple[float | None, ...]
    """One reward per sample; None where there is none (NaN, infinite, a rule that failed)."""

    @property
    def pass_rate(self) -> float | None:
        """Mean of the rewards, each taken as 0 below 0 and as 1 above 1; None where no sample has one."""
        rated = [min(max(reward, 0.0), 1.0) for reward in self.rewards if reward is not None]
        return sum(rated) / len(rated) if rated else None


@dataclass(frozen=True, slots=True)
class PassRate:
    """How a prompt's answers did when it was last asked."""

    rate: float
    """Its pass rate, from 0 to 1; see `ScoredGroup.pass_rate`."""
    epoch: int
    """Epoch of the prompt's source in which that was, from 0."""


PassRates = Mapping[str, PassRate]
"""The pass rates of prompts, by the row that they come from."""


@dataclass(frozen=True, slots=True)
class ByToken:
    """Log-probs of each token of a pair's completions, in nats."""

    chosen: tuple[float, ...]
    """None of tokens is an empty tuple."""
    rejected: tuple[float, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """Those of the chosen completion, then those of the rejected one."""
        return self.chosen + self.rejected


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example: two samples of one prompt, the chosen one preferred.

    With the losses sppoAdvantage and grpo one of the two may be missing: it then has no tokens.
    """

    prompt_id: str
    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    chosen: tuple[int, ...]
    """Token ids of the preferred completion, including its end token where it has one."""
    rejected: tuple[int, ...]
    """Token ids of the other completion."""
    chosen_reward: float
    """With the method sppo its win rate or, with the losses sppoAdvantage and grpo, its advantage."""
    rejected_reward: float
    reference_chosen: float | None = None
    """Summed log-prob of the chosen completion under the reference, in nats. None before the reference pass, unless the rollouts
    supplied it; and always where the loss compares with no reference."""
    reference_rejected: float | None = None
    """Summed log-prob of the rejected completion under the reference, in nats. None as for the chosen one."""

    sampled_by_token: ByToken | None = None
    """As the rollouts have them that sampled the answers. None where they were not asked or did not say."""
    policy_by_token: ByToken | None = None
    """With the loss grpo: under the policy at the window's beginning. None before the reference pass, and with other losses."""
    reference_by_token: ByToken | None = None
    """With the loss grpo: under the reference, where that is neither the policy at the window's beginning nor without weight."""

    def without_reference(self) -> "Pair":
        """The same pair, to be compared with another reference."""
        return replace(self, reference_chosen=None, reference_rejected=None, policy_by_token=None, reference_by_token=None)

    @property
    def num_tokens(self) -> int:
        """Tokens of the pair with its prompt counted once, as the trainer packs it."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)
