"""Why windows gave no pair, in words, and what to do about it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from spinrun_api.spec import SpinRunSpec
from spinrun_worker.methods.pairing import Pairing
from spinrun_worker.records import is_cut_off
from spinrun_worker.trainer.storage.windows import ScoredAnswers


@dataclass(frozen=True)
class Reason:
    """Why some prompts have no pair."""

    prompts: int
    of_all: str
    """What is so where it is the reason of every prompt."""
    of_some: str
    """The same after a number of prompts."""
    remedy: str


def why_no_pairs(spec: SpinRunSpec, windows: range, answers: Sequence[ScoredAnswers], pairings: Sequence[Pairing]) -> str:
    """Why no prompt of some windows has a pair, the remedy, and where to look.

    Args:
        spec: Of the run.
        windows: Their numbers.
        answers: Of each.
        pairings: Of each, without any pair.
    """
    which = f"windows {windows[0]} to {windows[-1]} gave no pair"
    where = f"Look at the samples (windows/{windows[-1]:06d}/samples.parquet)"
    total = sum(len(each.groups) for each in answers)
    if total == 0:
        return (
            f"{which}: no prompt was answered. Are those of spec.data.prompts too long for the model and spec.rollout.maxTokens?"
        )
    reasons = sorted(_reasons(spec, answers, pairings), key=lambda reason: reason.prompts, reverse=True)
    if reasons[0].prompts == total:
        why = reasons[0].of_all
    else:
        why = f"of {total} prompts {', '.join(f'{each.prompts} {each.of_some}' for each in reasons if each.prompts)}"
    return f"{which}: {why}.{_cut_off(spec, answers)}{_truths(spec, pairings, total)} {where}: {reasons[0].remedy}"


def _reasons(spec: SpinRunSpec, answers: Sequence[ScoredAnswers], pairings: Sequence[Pairing]) -> list[Reason]:
    by_rule = spec.preference.scoring is not None
    right = sum(pairing.all_right for pairing in pairings) if by_rule else 0
    wrong = sum(pairing.all_wrong for pairing in pairings) if by_rule else 0
    preference = f"spec.preference.{spec.preference.name}"
    return [
        Reason(
            right,
            "every answer was right: the prompts are too easy",
            "have only right answers",
            "if they are as right as their rewards say, take harder prompts (spec.data.prompts), or end the run here",
        ),
        Reason(
            wrong,
            f"every answer was wrong: the prompts are too hard, or {preference} does not read the answers",
            "have only wrong answers",
            f"are there right ones with reward 0? Then correct {preference}, or what the prompts ask for. Else take easier "
            f"prompts, or raise spec.rollout.samplesPerPrompt ({spec.rollout.samples_per_prompt})",
        ),
        _other_ties(spec, sum(pairing.ties for pairing in pairings) - right - wrong),
        _unrated(spec, sum(pairing.unrated for pairing in pairings), answers),
        _identical(spec, sum(pairing.identical for pairing in pairings)),
    ]


def _other_ties(spec: SpinRunSpec, count: int) -> Reason:
    margin = f"spec.method.minMargin ({spec.method.min_margin:g})"
    remedy = (
        f"does spec.preference.{spec.preference.name} tell them apart? Raise spec.rollout.temperature "
        f"({spec.rollout.temperature:g}) or spec.rollout.samplesPerPrompt ({spec.rollout.samples_per_prompt})"
    )
    if spec.method.min_margin:
        remedy += f", or lower {margin}"
    if spec.method.pairing == "bestVsBase":
        better = f"better than version 0's{f' by {margin}' if spec.method.min_margin else ''}"
        return Reason(count, f"no prompt's best answer is {better}", f"have a best answer that is not {better}", remedy)
    close = f"rewards that are equal, or closer than {margin}" if spec.method.min_margin else "equal rewards"
    return Reason(count, f"every prompt's answers have {close}", f"have answers with {close}", remedy)


def _unrated(spec: SpinRunSpec, count: int, answers: Sequence[ScoredAnswers]) -> Reason:
    if spec.method.name == "spin":
        return Reason(
            count,
            "without answers that were cut off there is nothing to learn from",
            "have only answers, or a true answer, that were cut off",
            f"is spec.rollout.maxTokens ({spec.max_tokens}) long enough?",
        )
    failures = answers[-1].failures
    why = f" ({'; '.join(failures)})" if failures else ""
    is_any_rated = any(reward is not None for each in answers for group in each.groups for reward in group.rewards)
    return Reason(
        count,
        f"{'every prompt has too few rated answers' if is_any_rated else 'no answer was rated'}{why}",
        f"have too few rated answers{why}",
        f"can spec.preference.{spec.preference.name} rate them, does it read the true answers, and is spec.rollout.maxTokens "
        f"({spec.max_tokens}) long enough?",
    )


def _identical(spec: SpinRunSpec, count: int) -> Reason:
    if spec.method.name == "spin":
        return Reason(
            count,
            "the model gives the true answer to every prompt, and has nothing left to learn from spec.data.prompts",
            "have only answers that are the true one",
            "take other prompts, or end the run here",
        )
    return Reason(
        count,
        "every prompt's best and worst answer are the same tokens, differently rewarded",
        "have pairs of the same tokens only, differently rewarded",
        f"does spec.preference.{spec.preference.name} give equal answers equal rewards?",
    )


def _cut_off(spec: SpinRunSpec, answers: Sequence[ScoredAnswers]) -> str:
    """How many answers were cut off, where they count as wrong or are left out for that; else nothing."""
    samples = [sample for each in answers for group in each.groups for sample in group.samples]
    count = sum(map(is_cut_off, samples))
    rule, dropped = spec.preference.scoring, spec.method.truncated == "drop"
    is_wrong = spec.method.name != "spin" and rule is not None and rule.resolved_truncated == "zero"
    if count == 0 or not (dropped or is_wrong):
        return ""
    limit = f"spec.rollout.maxTokens ({spec.max_tokens})"
    what = "make no pair (spec.method.truncated: drop)" if dropped else "count as wrong"
    return f" {count} of {len(samples)} answers were cut off at {limit} and so {what}."


def _truths(spec: SpinRunSpec, pairings: Sequence[Pairing], total: int) -> str:
    """How many true answers were cut off, where their prompts are left out for that; else nothing."""
    count = sum(pairing.truncated_truths for pairing in pairings)
    if count == 0 or spec.method.truncated != "drop":
        return ""
    return f" {count} of {total} true answers are longer than spec.rollout.maxTokens."
