"""`spinrun samples`: what the model said in a window, and which answers became pairs, out of the ledger's Parquet files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.output import echo, echo_json
from spinrun_cli.queries import SamplesQuery
from spinrun_cli.show.text import hanging, printable
from spinrun_cli.target import ledger_of
from spinrun_worker.ledger import Layout, Ledger, LedgerError, TornError, read_manifest, read_pairs, read_samples
from spinrun_worker.records import Message, Pair, PromptRecord, ScoredGroup, is_single, message_text

Json = dict[str, Any]


def show_samples(folder: Path, query: SamplesQuery) -> None:
    """Prints the samples or pairs of a local run's folder, or of a ledger.

    Raises:
        InvalidInputError: There is no such window or prompt.
        CommandError: The ledger cannot be read.
    """
    layout = Layout(ledger_of(folder))
    try:
        window = _window(layout, query.window)
        version = read_manifest(layout.window(window)).version
        groups = read_samples(layout.window(window) / "samples.parquet")
        pairs = read_pairs(layout.window(window) / "pairs.parquet") if query.pairs else []
    except TornError as error:
        raise CommandError(f"{error}: it may be being written at this moment") from error
    except LedgerError as error:
        raise CommandError(str(error)) from error
    wanted = [group for group in groups if _is_wanted(group.prompt.id, query.prompt)]
    if not wanted:
        raise InvalidInputError(f"window {window} has no prompt {query.prompt}: its prompts are {_some(groups)}")
    head = {"window": window, "version": version, "numPrompts": len(groups)}
    if query.pairs:
        shown = _pairs(wanted, [pair for pair in pairs if _is_wanted(pair.prompt_id, query.prompt)])
        head["numPairs"] = len(pairs)
    else:
        shown = [_samples(group) for group in wanted]
    shown = shown[: query.limit] if query.limit else shown
    if query.as_json:
        echo_json(head | {"pairs" if query.pairs else "prompts": shown}, indent=2)
        return
    unit = "pairs" if query.pairs else "prompts"
    total = len(pairs) if query.pairs else len(groups)
    echo(f"window {window}, sampled from version {version}: {len(shown)} of {total} {unit}")
    for each in shown:
        echo("\n" + (_pair_text(each) if query.pairs else _group_text(each)))


def _window(layout: Layout, wanted: int | None) -> int:
    """The window that is meant. Raises InvalidInputError when the ledger has no such window."""
    present = Ledger(layout.root, "").present("window")
    if not present:
        raise InvalidInputError(f"{layout.root} holds no window yet: the first comes when its samples have their rewards")
    if wanted is None:
        return present[-1]
    if wanted not in present:
        numbers = str(present[0]) if len(present) == 1 else f"{present[0]} to {present[-1]}"
        raise InvalidInputError(f"there is no window {wanted}: {layout.root} holds {numbers}")
    return wanted


def _is_wanted(identity: str, wanted: str | None) -> bool:
    """Whether a prompt is the one, also where it is named without the number of its epoch: 17 for 17#2."""
    return wanted is None or wanted in (identity, identity.partition("#")[0])


def _some(groups: Sequence[ScoredGroup]) -> str:
    return ", ".join(group.prompt.id for group in groups[:5]) + (", …" if len(groups) > 5 else "")


# --- documents -----------------------------------------------------------------------------------------------------


def _prompt(prompt: PromptRecord) -> Json:
    return {"id": prompt.id, "prompt": prompt.text, "messages": list(prompt.messages), "answer": prompt.answer}


def _samples(group: ScoredGroup) -> Json:
    samples = [
        {"text": each.text, "reward": reward, "finishReason": each.finish_reason, "numTokens": len(each.tokens)}
        for each, reward in zip(group.samples, group.rewards, strict=True)
    ]
    return _prompt(group.prompt) | {"samples": samples}


def _pairs(groups: Sequence[ScoredGroup], pairs: Sequence[Pair]) -> list[Json]:
    """The pairs with their prompts and texts."""
    by_id = {group.prompt.id: group for group in groups}
    return [
        _prompt(by_id[pair.prompt_id].prompt if pair.prompt_id in by_id else PromptRecord(pair.prompt_id, pair.prompt, ""))
        | {
            "chosen": _side(by_id.get(pair.prompt_id), pair.chosen, pair.chosen_reward, pair.reference_chosen),
            "rejected": _side(by_id.get(pair.prompt_id), pair.rejected, pair.rejected_reward, pair.reference_rejected),
        }
        for pair in pairs
    ]


def _side(group: ScoredGroup | None, tokens: tuple[int, ...], reward: float, reference: float | None) -> Json:
    """One answer of a pair. A pair has its tokens only: the text is that of the sample with the same ones. What is not a
    sample, such as the true answer that SPIN chooses, has no text here."""
    samples = group.samples if group else ()
    text = next((sample.text for sample in samples if sample.tokens == tokens), None)
    return {"text": text, "reward": reward, "numTokens": len(tokens), "referenceLogprob": reference}


# --- text ----------------------------------------------------------------------------------------------------------


def _heading(document: Json) -> str:
    """A prompt's id, then what it asks: a single message of a user as it is, of a conversation every message after its role."""
    answer = "" if document["answer"] is None else printable(f"  (answer: {document['answer']})")
    messages: list[Message] = document["messages"]
    if is_single(messages):
        shown = printable(message_text(messages[0]))
    else:
        shown = "\n".join(
            hanging(f"{printable(message['role'], keep='')}: ", printable(message_text(message))) for message in messages
        )
    return hanging(f"{document['id']}  ", shown + answer)


def _group_text(document: Json) -> str:
    """A prompt and its samples, the best first, equal ones once with their number."""
    counts = Counter((each["reward"], each["finishReason"], each["text"]) for each in document["samples"])
    rows = sorted(counts.items(), key=lambda item: (item[0][0] is None, -(item[0][0] or 0.0), -item[1]))
    lines = [
        hanging(f"  {_reward(reward):>7}  {f'{count}×' if count > 1 else '':>4}  {finish:<6}  ", printable(text))
        for (reward, finish, text), count in rows
    ]
    return "\n".join([_heading(document), *lines])


def _pair_text(document: Json) -> str:
    lines = [
        hanging(f"  {side:<8}  {_reward(document[side]['reward']):>7}  ", _answer(document[side], document["answer"]))
        for side in ("chosen", "rejected")
    ]
    return "\n".join([_heading(document), *lines])


def _answer(side: Json, true_answer: str | None) -> str:
    if side["text"] is not None:
        return printable(side["text"])
    if not side["numTokens"]:
        return "(none)"
    return (
        printable(f"(the true answer, {side['numTokens']} tokens) {true_answer}")
        if true_answer
        else f"({side['numTokens']} tokens)"
    )


def _reward(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.4g}"
