"""What a run is doing, what limits it and what to change, as text for people and as a document for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from spinrun_cli.show.findings import Finding, findings
from spinrun_cli.show.render import state
from spinrun_cli.show.run_data import RunData
from spinrun_cli.show.run_figures import OUTCOMES, Figures, percent, ratio
from spinrun_cli.show.snapshot import Snapshot
from spinrun_cli.show.text import duration, hanging

Json = dict[str, Any]

WIDTH = 100
"""Characters of a line of sentences."""


@dataclass(frozen=True)
class Explained:
    """What is known of a run that is to be explained."""

    snapshot: Snapshot | None
    """Where it stands; None where its ledger is all there is."""
    data: RunData
    """Its figures, as far as they can be read."""
    obstacles: Sequence[str] = ()
    """What stands in its way, each with its remedy."""
    notes: Sequence[str] = field(default_factory=tuple[str, ...])
    """Why its figures cannot be read, where that is so."""


def text(run: Explained) -> str:
    """The explanation for people."""
    figures = Figures(run.data.sound())
    parts = ["\n".join(_standing(run, figures))]
    if run.obstacles:
        parts.append("\n".join(["In its way:", *(_wrapped("- ", each) for each in run.obstacles)]))
    found = findings(figures)
    if found:
        numbered = (_numbered(number, finding) for number, finding in enumerate(found, 1))
        parts.append("\n".join(["What limits it, the costliest first:", *numbered]))
    if notes := list(_notes(run, figures, found)):
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def document(run: Explained) -> Json:
    """The explanation for programs."""
    figures = Figures(run.data.sound())
    found = findings(figures)
    return {
        "name": run.data.name,
        "state": None if run.snapshot is None else state(run.snapshot),
        "learning": run.data.sound().learning,
        "windows": [line.window for line in figures.windows],
        "prompts": figures.prompts if figures.windows else {},
        "seconds": figures.seconds if figures.windows else {},
        "obstacles": list(run.obstacles),
        "findings": [{"says": finding.says, "change": finding.change} for finding in found],
        "notes": list(_notes(run, figures, found)),
    }


def _standing(run: Explained, figures: Figures) -> Iterator[str]:
    """Where the run stands: its state, its accuracy, and what became of prompts and time."""
    where = "a ledger; whether a trainer works on it cannot be seen here" if run.snapshot is None else state(run.snapshot)
    yield f"{run.data.name}: {where}"
    if learning := run.data.sound().learning:
        yield learning
    if shares := _shares(figures.prompts, OUTCOMES):
        yield f"prompts of {figures.when}: {shares}"
    seconds = figures.seconds
    if shares := _shares(seconds, {phase: phase for phase in sorted(seconds, key=seconds.__getitem__, reverse=True)}):
        each = duration(sum(seconds.values()) / len(figures.timed))
        yield f"time of {figures.when_timed}, {each}{' each' if len(figures.timed) > 1 else ''}: {shares}"


def _shares(amounts: dict[str, float], words: dict[str, str]) -> str:
    """Amounts as shares of their sum; those that are there."""
    total = sum(amounts.values())
    shares = {word: ratio(amounts.get(name, 0.0), total) for name, word in words.items()}
    return ", ".join(f"{percent(share)} {word}" for word, share in shares.items() if share >= 0.005)


def _numbered(number: int, finding: Finding) -> str:
    first = f"{number}. "
    return f"{_wrapped(first, finding.says)}\n{_wrapped(' ' * len(first) + '→ ', finding.change)}"


def _wrapped(first: str, text: str) -> str:
    return hanging(first, "\n".join(wrap(text, WIDTH - len(first), break_long_words=False, break_on_hyphens=False)))


def _notes(run: Explained, figures: Figures, found: Sequence[Finding]) -> Iterator[str]:
    """What cannot be told, and why."""
    yield from run.notes
    if not figures.windows:
        if not run.notes:
            yield "What limits it cannot be told before its first window has ended."
        return
    if len(figures.evaluations) < 2:
        yield "Whether it learns cannot be told before two versions are evaluated (spec.data.evaluation)."
    if not found:
        yield "Nothing in its figures stands out."
