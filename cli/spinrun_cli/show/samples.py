"""The samples or pairs of a window: as a document that travels, and as text."""

import json
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator

from spinrun_api.base import Count, Record
from spinrun_cli.show.text import hanging, printable
from spinrun_worker.records import Message, is_message, is_single, message_text

Json = dict[str, Any]


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not all(is_message(message) for message in messages):
        raise ValueError("a message must have role and content as text")
    return messages


Conversation = Annotated[tuple[Message, ...], AfterValidator(_checked)]
"""Messages that come from a cluster, once they are sure to be ones."""


class ShownSample(Record):
    """An answer."""

    text: str
    """What the model wrote."""

    reward: float | None = None
    """Absent where the answer has none."""

    finish_reason: str
    """stop, or length where it was cut."""

    num_tokens: Count
    """Its length."""


class ShownSide(Record):
    """One answer of a pair."""

    text: str | None = None
    """Absent where only the tokens are known."""

    reward: float
    """Its reward."""

    num_tokens: Count
    """Its length."""

    reference_logprob: float | None = None
    """Summed log-prob under the reference, in nats; absent where the loss compares with none."""


class ShownPrompt(Record):
    """A prompt."""

    id: str
    """Its name."""

    prompt: str
    """The last message of the user."""

    messages: Conversation = ()
    """Every message, with role and content; none from an operator that did not keep them."""

    answer: str | None = None
    """The true answer, where there is one."""


class PromptWithSamples(ShownPrompt):
    """A prompt and its answers."""

    samples: list[ShownSample]
    """The answers."""


class PromptWithPair(ShownPrompt):
    """A prompt and two of its answers."""

    chosen: ShownSide
    """The preferred one."""

    rejected: ShownSide
    """The other one."""


class ShownWindow(Record):
    """What is shown of a window: prompts with samples, or pairs."""

    window: Count
    """Its number."""

    version: Count
    """Version that was sampled from."""

    num_prompts: Count
    """Prompts of the window, shown or not."""

    num_pairs: Count | None = None
    """Pairs of the window, shown or not."""

    prompts: list[PromptWithSamples] | None = None
    """Those that are shown; absent where pairs are."""

    pairs: list[PromptWithPair] | None = None
    """Those that are shown; absent where prompts are."""


def document(window: ShownWindow) -> Json:
    """The window for programs: of prompts and pairs every field, also those that are not known."""
    given = {name for name in ("num_pairs", "prompts", "pairs") if getattr(window, name) is not None}
    return json.loads(window.model_dump_json(by_alias=True, include={"window", "version", "num_prompts", *given}))


def text(window: ShownWindow) -> str:
    """The window for people."""
    shown = [*map(_group_text, window.prompts or ()), *map(_pair_text, window.pairs or ())]
    counted = "prompts" if window.pairs is None else "pairs"
    total = window.num_prompts if window.pairs is None else window.num_pairs
    head = f"window {window.window}, sampled from version {window.version}: {len(shown)} of {total} {counted}"
    return "\n\n".join([head, *shown])


def _heading(prompt: ShownPrompt) -> str:
    """A prompt's id, then what it asks: a single message of a user as it is, of a conversation every message after its role."""
    answer = "" if prompt.answer is None else printable(f"  (answer: {prompt.answer})")
    if not prompt.messages or is_single(prompt.messages):
        shown = printable(prompt.prompt)
    else:
        shown = "\n".join(
            hanging(f"{printable(message['role'], keep='')}: ", printable(message_text(message))) for message in prompt.messages
        )
    return hanging(f"{printable(prompt.id, keep='')}  ", shown + answer)


def _group_text(prompt: PromptWithSamples) -> str:
    """A prompt and its samples, the best first, equal ones once with their number."""
    counts = Counter((each.reward, each.finish_reason, each.text) for each in prompt.samples)
    rows = sorted(counts.items(), key=lambda item: (item[0][0] is None, -(item[0][0] or 0.0), -item[1]))
    lines = [
        hanging(f"  {_reward(reward):>7}  {f'{count}×' if count > 1 else '':>4}  {finish:<6}  ", printable(text))
        for (reward, finish, text), count in rows
    ]
    return "\n".join([_heading(prompt), *lines])


def _pair_text(pair: PromptWithPair) -> str:
    sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
    lines = [hanging(f"  {name:<8}  {_reward(side.reward):>7}  ", _answer(side, pair.answer)) for name, side in sides]
    return "\n".join([_heading(pair), *lines])


def _answer(side: ShownSide, true_answer: str | None) -> str:
    if side.text is not None:
        return printable(side.text)
    if not side.num_tokens:
        return "(none)"
    if not true_answer:
        return f"({side.num_tokens} tokens)"
    return printable(f"(the true answer, {side.num_tokens} tokens) {true_answer}")


def _reward(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.4g}"
