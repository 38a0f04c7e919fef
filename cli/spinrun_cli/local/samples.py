"""`spinrun samples`: what the model said in a window, and which answers became pairs, out of the ledger's Parquet files."""

from collections.abc import Sequence
from pathlib import Path

from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.queries import SamplesQuery
from spinrun_cli.show.samples import PromptWithPair, PromptWithSamples, ShownPrompt, ShownSample, ShownSide, ShownWindow
from spinrun_cli.target import ledger_of
from spinrun_worker.ledger import Layout, Ledger, LedgerError, TornError, read_manifest, read_pairs, read_samples
from spinrun_worker.records import Pair, PromptRecord, ScoredGroup


def load_samples(folder: Path, query: SamplesQuery) -> ShownWindow:
    """The samples or pairs of a local run's folder, or of a ledger.

    Raises:
        InvalidInputError: There is no such window or prompt, or it is damaged.
        CommandError: The ledger cannot be read.
    """
    layout = Layout(ledger_of(folder))
    try:
        window = _window(layout, query.window)
        version = _version(layout, window)
        groups = read_samples(layout.window(window) / "samples.parquet")
        pairs = read_pairs(layout.window(window) / "pairs.parquet") if query.pairs else []
    except TornError as error:
        raise InvalidInputError(f"{error}: restore it from a copy, or see another window") from error
    except LedgerError as error:
        raise CommandError(str(error)) from error
    wanted = [group for group in groups if _is_wanted(group.prompt.id, query.prompt)]
    if not wanted and query.prompt is not None:
        raise InvalidInputError(f"window {window} has no prompt {query.prompt}: its prompts are {_some(groups)}")
    shown = slice(query.limit or None)
    if query.pairs:
        return ShownWindow(
            window=window,
            version=version,
            num_prompts=len(groups),
            num_pairs=len(pairs),
            pairs=_pairs(wanted, [pair for pair in pairs if _is_wanted(pair.prompt_id, query.prompt)])[shown],
        )
    prompts = [_samples(group) for group in wanted[shown]]
    return ShownWindow(window=window, version=version, num_prompts=len(groups), prompts=prompts)


def _version(layout: Layout, window: int) -> int:
    """The version that a window was sampled from. Raises CommandError where that is not settled yet, LedgerUnavailableError."""
    try:
        return read_manifest(layout.window(window)).version
    except TornError as error:
        raise CommandError(f"{error}: it may be being written at this moment") from error


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


def _prompt(prompt: PromptRecord) -> ShownPrompt:
    return ShownPrompt(id=prompt.id, prompt=prompt.text, messages=prompt.messages, answer=prompt.answer)


def _samples(group: ScoredGroup) -> PromptWithSamples:
    samples = [
        ShownSample(text=each.text, reward=reward, finish_reason=each.finish_reason, num_tokens=len(each.tokens))
        for each, reward in zip(group.samples, group.rewards, strict=True)
    ]
    return PromptWithSamples(**dict(_prompt(group.prompt)), samples=samples)


def _pairs(groups: Sequence[ScoredGroup], pairs: Sequence[Pair]) -> list[PromptWithPair]:
    """The pairs with their prompts and texts."""
    by_id = {group.prompt.id: group for group in groups}
    found: list[PromptWithPair] = []
    for pair in pairs:
        group = by_id.get(pair.prompt_id)
        prompt = group.prompt if group is not None else PromptRecord(pair.prompt_id, pair.prompt, "")
        chosen = _side(group, pair.chosen, pair.chosen_reward, pair.reference_chosen)
        rejected = _side(group, pair.rejected, pair.rejected_reward, pair.reference_rejected)
        found.append(PromptWithPair(**dict(_prompt(prompt)), chosen=chosen, rejected=rejected))
    return found


def _side(group: ScoredGroup | None, tokens: tuple[int, ...], reward: float, reference: float | None) -> ShownSide:
    """One answer of a pair. A pair has its tokens only: the text is that of the sample with the same ones. What is not a
    sample, such as the true answer that SPIN chooses, has no text here."""
    samples = group.samples if group else ()
    text = next((sample.text for sample in samples if sample.tokens == tokens), None)
    return ShownSide(text=text, reward=reward, num_tokens=len(tokens), reference_logprob=reference)
