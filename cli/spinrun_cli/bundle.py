"""What a report shows, as one JSON document: how a run travels from where its ledger is to where it is drawn.

The document comes out of a pod and was made of files that others can write: it counts only as far as the models below take it.
"""

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError

from spinrun_api.base import Record, first_problem
from spinrun_cli.errors import CommandError
from spinrun_cli.show.run_data import Document, RunData
from spinrun_cli.show.samples import Conversation
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Sample
from spinrun_worker.records import PromptRecord, ScoredGroup

LONGEST_TEXT = 2000
"""Characters of a text that travel; a page shows fewer."""


class TravellingAnswer(Record):
    """The first answer to a held-out prompt."""

    id: str
    """Name of the prompt."""

    prompt: str
    """The last message of the user."""

    messages: Conversation = ()
    """Every message, where the data has conversations."""

    expected: str | None = None
    """The true answer."""

    text: str | None = None
    """What the model wrote; absent where it wrote nothing."""

    finish_reason: Literal["stop", "length"] = "stop"
    """length where the answer was cut off at maxTokens."""

    reward: float | None = None
    """The answer's reward."""


class TravellingRun(Record):
    """A run as its files tell it."""

    name: str = Field(max_length=1024)
    """Its name."""

    run: Document
    """The resolved SpinRun."""

    record: RunRecord | None = None
    """How the run was made."""

    termination: TerminationMessage | None = None
    """How its newest attempt ended."""

    lines: list[MetricsLine]
    """Its figures."""

    before: list[TravellingAnswer]
    """Answers of version 0."""

    after: list[TravellingAnswer]
    """Answers of the last version that was evaluated."""

    notes: list[str]
    """What is missing, and why."""


def bundled(data: RunData) -> str:
    """A run as a document.

    Args:
        data: The run.
    """
    run = TravellingRun(
        name=data.name[:1024],
        run=data.document,
        record=data.record,
        termination=data.termination,
        lines=[*data.steps, *data.windows, *data.evaluations],
        before=_answers(data.before),
        after=_answers(data.after),
        notes=data.notes,
    )
    # In ASCII: what prints it would take the place of characters that command a terminal.
    return json.dumps(run.to_document(), allow_nan=False)


def unbundle(text: bytes) -> RunData:
    """A run that `bundled` has made a document of.

    Args:
        text: The document.

    Raises:
        CommandError: It is not the whole of one.
    """
    try:
        run = TravellingRun.model_validate_json(text)
    except ValidationError as error:
        why = f"incomplete, or in the form of another version of SpinRun ({first_problem(error)[:200]})"
        raise CommandError(f"the run arrived {why}: try again, or choose another image with --image") from error
    steps, windows, evaluations = by_event(run.lines)
    return RunData(
        run.name,
        run.run,
        record=run.record,
        termination=run.termination,
        steps=steps,
        windows=windows,
        evaluations=evaluations,
        before=_groups(run.before),
        after=_groups(run.after),
        notes=run.notes,
    )


def by_event(lines: Sequence[MetricsLine]) -> tuple[list[MetricsLine], ...]:
    """Lines of steps, of windows and of evaluations, each in their order.

    Args:
        lines: Lines of any kind.
    """
    return tuple([line for line in lines if line.event == event] for event in ("step", "window", "evaluation"))


def _answers(groups: Sequence[ScoredGroup]) -> list[TravellingAnswer]:
    return [_answer(group) for group in groups]


def _answer(group: ScoredGroup) -> TravellingAnswer:
    prompt = group.prompt
    asked = TravellingAnswer(
        id=prompt.id,
        prompt=prompt.text[:LONGEST_TEXT],
        messages=tuple(message | {"content": message["content"][:LONGEST_TEXT]} for message in prompt.conversation),
        expected=None if prompt.answer is None else prompt.answer[:LONGEST_TEXT],
    )
    if not group.samples:
        return asked
    first = group.samples[0]
    given = {"text": first.text[:LONGEST_TEXT], "finish_reason": first.finish_reason, "reward": group.rewards[0]}
    return asked.model_copy(update=given)


def _groups(answers: Sequence[TravellingAnswer]) -> list[ScoredGroup]:
    groups: list[ScoredGroup] = []
    for each in answers:
        samples = () if each.text is None else (Sample(tokens=(), text=each.text, finish_reason=each.finish_reason),)
        rewards = () if each.text is None else (each.reward,)
        prompt = PromptRecord(each.id, (), each.prompt, each.expected, conversation=each.messages)
        groups.append(ScoredGroup(prompt, samples, rewards))
    return groups
