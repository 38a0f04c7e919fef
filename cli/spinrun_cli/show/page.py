"""The page: what the template is given. Everything from the run is text there, and escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spinrun_cli.show.charts import panels, to_svg
from spinrun_cli.show.run_data import RunData, value_at
from spinrun_cli.show.text import duration
from spinrun_worker.records import PromptRecord, ScoredGroup, is_cut_off, is_single, message_text

MOST_COMPARISONS = 60
LONGEST_TEXT = 800
"""Characters of an answer, or of a message, that are shown."""
MOST_TURNS = 50
"""Messages of a conversation that are shown: the first half of them, and the last."""
LONGEST_SPEC = 200_000
MOST_FACTS = 100
"""Rows about the machine, and versions of packages."""


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    """A greedy answer to a held-out prompt."""

    text: str
    mark: str
    """right, wrong, or none where there is no reward."""
    reward: str


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    text: str


@dataclass(frozen=True)
class HeldOutAnswers:
    """One held-out prompt, answered before and after."""

    prompt: str
    """What the user asks (last)."""
    turns: tuple[Turn, ...]
    """Every message, where the prompt is more than one of a user."""
    expected: str | None
    before: Answer
    after: Answer

    @property
    def change(self) -> str:
        """What became of the answer: learned, lost, wrong or right."""
        if self.before.mark == self.after.mark:
            return "right" if self.after.mark == "right" else "wrong"
        return "learned" if self.after.mark == "right" else "lost"


def render(data: RunData) -> str:
    """The report as one HTML document that needs nothing else."""
    environment = Environment(
        loader=PackageLoader("spinrun_cli.show", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    data = data.sound()
    compared = compare(data.before, data.after)
    return environment.get_template("page.html.j2").render(
        data=data,
        subtitle=_subtitle(data.document),
        machine=_rows(data.record.machine if data.record else {}),
        versions=_rows(data.record.versions if data.record else {}),
        status=_status(data),
        tiles=tiles(data),
        charts=[(panel, Markup(to_svg(panel, data))) for panel in panels(data)],
        comparisons=compared[:MOST_COMPARISONS],
        num_compared=len(compared),
        changes={change: sum(item.change == change for item in compared) for change in CHANGES},
        last_version=data.evaluations[-1].version if data.evaluations else None,
        spec_text=_cut(yaml.safe_dump(data.document, sort_keys=False, width=110, allow_unicode=True), LONGEST_SPEC)
        if data.document
        else "",
    )


CHANGES = ("learned", "lost", "wrong", "right")
"""In the order in which a reader wants to see them."""


def compare(before: Sequence[ScoredGroup], after: Sequence[ScoredGroup]) -> list[HeldOutAnswers]:
    """The prompts that both evaluations answered, the changed ones first."""
    later = {group.prompt.id: group for group in after}
    found = [
        HeldOutAnswers(
            _cut(group.prompt.text), _turns(group.prompt), _expected(group), _answer(group), _answer(later[group.prompt.id])
        )
        for group in before
        if group.prompt.id in later
    ]
    return sorted(found, key=lambda item: CHANGES.index(item.change))


def _turns(prompt: PromptRecord) -> tuple[Turn, ...]:
    if is_single(prompt.messages):
        return ()
    turns = tuple(Turn(message["role"], _cut(message_text(message))) for message in prompt.messages)
    if len(turns) <= MOST_TURNS:
        return turns
    half = MOST_TURNS // 2
    return (*turns[:half], Turn("…", f"({len(turns) - MOST_TURNS} more messages)"), *turns[-half:])


def _expected(group: ScoredGroup) -> str | None:
    return None if group.prompt.answer is None else _cut(group.prompt.answer)


def _answer(group: ScoredGroup) -> Answer:
    if not group.samples:
        return Answer("", "none", "no answer")
    reward = group.rewards[0]
    mark = "none" if reward is None else "right" if reward >= 1 else "wrong"
    why = ", cut off at maxTokens" if is_cut_off(group.samples[0]) else ""
    return Answer(_cut(group.samples[0].text), mark, f"{'no reward' if reward is None else f'{reward:g}'}{why}")


def _cut(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a record as text, as many as there is room for."""
    return [(_cut(name), _cut(str(value))) for name, value in islice(facts.items(), MOST_FACTS)]


def tiles(data: RunData) -> list[Tile]:
    """The figures that a reader looks for first, as far as they are known."""
    found: list[Tile] = []
    if data.accuracy and data.best:
        first, last = data.accuracy[0], data.accuracy[-1]
        prompts = data.evaluations[-1].values.get("num_prompts")
        over = f"over {prompts:.0f} held-out prompts" if prompts else "held out"
        value = f"{first:.3f} → {last:.3f}" if len(data.accuracy) > 1 else f"{first:.3f}"
        found.append(Tile("Accuracy", value, f"{last - first:+.3f} {over}" if len(data.accuracy) > 1 else over))
        found.append(Tile("Best", f"{data.best.accuracy:.3f}", f"version {data.best.version}"))
    if data.windows:
        pairs = sum(line.values.get("pairs", 0.0) for line in data.windows)
        found.append(Tile("Training", f"{data.num_steps} steps", f"{len(data.windows)} windows, {pairs:.0f} pairs"))
    if speeds := [line.values[SPEED] for line in data.windows if SPEED in line.values]:
        samples = sum(line.values.get("samples", 0.0) for line in data.windows)
        found.append(Tile("Generation", f"{sum(speeds) / len(speeds):.1f}/s", f"{samples:.0f} samples" if samples else "samples"))
    if cut_off := sum(line.values.get("truncated_samples", 0.0) for line in data.windows):
        found.append(Tile("Cut off", f"{cut_off:.0f} answers", "at maxTokens, so not scored by their text"))
    if data.seconds is not None:
        found.append(Tile("Time", duration(data.seconds), "first to last figure"))
    return found


SPEED = "throughput/samples_per_second"


def _subtitle(document: dict[str, Any]) -> str:
    """Model, data and method in one line, as far as they are texts."""

    def text(*path: str) -> str:
        value = value_at(document, "spec", *path)
        return _cut(value) if isinstance(value, str) else ""

    data = " ".join(filter(None, (text("data", "prompts", key) for key in ("source", "config"))))
    if isinstance(sources := value_at(document, "spec", "data", "prompts", "sources"), list):
        data = f"{len(cast('list[object]', sources))} sources of prompts"
    return " · ".join(filter(None, (text("model", "source"), data, text("method", "name"))))


def _status(data: RunData) -> dict[str, Any]:
    """How the run stands: a word, its colour, and what the trainer said."""
    if data.termination is None:
        return {
            "word": "Unfinished",
            "tone": "neutral",
            "message": "The run is still in progress, or was killed.",
        }
    tone = {"Complete": "good", "Failed": "bad"}.get(data.termination.result, "neutral")
    word = {"Preempted": "Stopped"}.get(data.termination.result, data.termination.result)
    return {"word": word, "tone": tone, "message": _cut(data.termination.message, LONGEST_SPEC)}
