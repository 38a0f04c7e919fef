"""What limits a run, and what to change: rules from its figures to sentences. Pure.

Each rule looks at one thing, says nothing where there is nothing to say, and gives the figures that it goes by.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spinrun_cli.show.run_figures import Figures, percent, ratio, wilson
from spinrun_cli.show.text import figure
from spinrun_protocol.ledger import MetricsLine


@dataclass(frozen=True)
class Finding:
    """Something that limits a run."""

    cost: float
    """For their order: the share of the run's time that it costs, roughly. Above 1: it spoils what the run learns."""
    says: str
    """What is so, with its figures."""
    change: str
    """What to do about it."""


def findings(run: Figures) -> list[Finding]:
    """What limits a run, the costliest first; nothing before its first window is done.

    Args:
        run: Its figures.
    """
    if not run.windows:
        return []
    found = [finding for rule in RULES if (finding := rule(run)) is not None]
    return sorted(found, key=lambda finding: finding.cost, reverse=True)


# --- prompts that teach nothing ------------------------------------------------------------------------------------


def too_easy(run: Figures) -> Finding | None:
    """Prompts whose answers are all right."""
    share, words = run.of_prompts("all_right")
    if share < 0.2:
        return None
    most = run.named("method", "sampling", "passRate", "max")
    is_bounded = run.setting("method", "sampling", "passRate", "max", default=1) < 1
    rate = f"lower {most}" if is_bounded else f"set {most} below 1"
    return Finding(
        share * run.of_time("generate")[0],
        f"{words} have only right answers, and teach nothing.",
        f"{rate}, so that such prompts are left out for a while, or take harder ones (spec.data.prompts)",
    )


def too_hard(run: Figures) -> Finding | None:
    """Prompts whose answers are all wrong."""
    share, words = run.of_prompts("all_wrong")
    if share < 0.2:
        return None
    least = run.named("method", "sampling", "passRate", "min")
    is_bounded = run.setting("method", "sampling", "passRate", "min", default=0) > 0
    rate = f"raise {least}" if is_bounded else f"set {least} above 0"
    return Finding(
        share * run.of_time("generate")[0],
        f"{words} have only wrong answers, and teach nothing.",
        f"see in `spinrun samples` whether spec.preference.{run.preference} reads right answers as right; if it does, {rate}, "
        f"take easier prompts, or raise {run.named('rollout', 'samplesPerPrompt')}",
    )


def answers_alike(run: Figures) -> Finding | None:
    """Other prompts whose answers have equal rewards."""
    share, words = run.of_prompts("other_ties", "ties")
    if share < 0.2:
        return None
    has_margin = run.setting("method", "minMargin", default=0) > 0
    margin = run.named("method", "minMargin")
    return Finding(
        share * run.of_time("generate")[0],
        f"{words} have answers with equal rewards{f', or closer than {margin}' if has_margin else ''}, and teach nothing.",
        f"see in `spinrun samples` whether spec.preference.{run.preference} tells answers apart; if it does, "
        f"{f'lower {margin}, or ' if has_margin else ''}raise {run.named('rollout', 'temperature')} or "
        f"{run.named('rollout', 'samplesPerPrompt')}",
    )


def same_text(run: Figures) -> Finding | None:
    """Prompts whose pairs would be of the same text."""
    share, words = run.of_prompts("identical")
    if share < 0.05:
        return None
    cost = share * run.of_time("generate")[0]
    if run.choice("method", "name", default="onlineDPO") == "spin":
        return Finding(
            cost,
            f"{words} get the true answer from the model: nothing is left to learn from them.",
            "take other prompts (spec.data.prompts), or end the run here",
        )
    return Finding(
        cost,
        f"{words} have a best and a worst answer of the same text.",
        f"see whether spec.preference.{run.preference} gives equal answers equal rewards; if it does, raise "
        f"{run.named('rollout', 'temperature')}",
    )


def without_rewards(run: Figures) -> Finding | None:
    """Prompts with too few rewards."""
    share, words = run.of_prompts("unrated")
    if share < 0.05:
        return None
    given_up, requests = run.last("preference/failures_total"), run.last("preference/requests_total")
    dropped, samples = run.total("dropped_samples"), run.total("samples")
    if given_up:
        why = f"the preference model's server failed on {figure(given_up, 0)} of {figure(requests, 0)} requests"
        change = "see the server's log, and lower spec.preference's concurrency or raise its timeoutSeconds"
    elif run.choice("preference", run.preference, "truncated", default="") == "drop":
        why = f"{figure(run.total('truncated_samples'), 0)} of {figure(samples, 0)} answers were cut off and dropped"
        change = "raise spec.rollout.maxTokens, or set the rule's truncated: zero"
    else:
        why = f"{figure(dropped, 0)} of {figure(samples, 0)} answers have no reward"
        change = (
            f"`spinrun logs --role trainer` says why: can spec.preference.{run.preference} read the true answers of the data?"
        )
    return Finding(share * run.of_time("generate")[0], f"{words} have fewer than two rated answers: {why}.", change)


def windows_not_filled(run: Figures) -> Finding | None:
    """Windows that have asked the most prompts, and still lack pairs."""
    wanted = run.setting("trainer", "pairsPerStep", default=0) * run.steps_per_window
    short = [line for line in run.windows if line.values.get("pairs", wanted) < wanted]
    if not short:
        return None
    pairs, prompts = (short[-1].values.get(name, 0.0) for name in ("pairs", "prompts"))
    return Finding(
        ratio(wanted - pairs, wanted) / 2,
        f"{len(short)} of {len(run.windows)} windows were not filled: window {short[-1].window} has {figure(pairs, 0)} of "
        f"{figure(wanted, 0)} pairs after {figure(prompts, 0)} prompts.",
        f"raise {run.named('method', 'sampling', 'maxPromptsFactor')}, or take prompts of which more give pairs",
    )


def steps_not_filled(run: Figures) -> Finding | None:
    """Windows of so many prompts, of which few give pairs."""
    prompts = run.prompts
    without = sum(prompts.values()) - prompts["paired_prompts"]
    share = ratio(without, sum(prompts.values()))
    is_of_pairs = run.choice("method", "pairing", default="bestVsWorst") != "bestVsBase"
    if share < 0.3 or not is_of_pairs or run.fills_windows:
        return None
    return Finding(
        share / 10,
        f"Steps are small: {percent(share)} of the prompts of {run.when} gave no pair.",
        "set spec.trainer.pairsPerStep in place of promptsPerStep, so that windows ask on until they are full",
    )


def answers_cut_off(run: Figures) -> Finding | None:
    """Answers that reached maxTokens."""
    share = min(1.0, run.mean("response_length/truncated"))
    if share < 0.05:
        return None
    return Finding(
        share * run.of_time("generate")[0],
        f"{percent(share)} of the answers of {run.when} were cut off at {run.named('rollout', 'maxTokens')}.",
        "raise spec.rollout.maxTokens, or have the prompts ask for shorter answers",
    )


# --- time ----------------------------------------------------------------------------------------------------------


def trainer_waits(run: Figures) -> Finding | None:
    """The trainer waits for answers."""
    share, words = run.of_time("generate")
    if share < 0.5:
        return None
    return Finding(
        share / 2,  # twice the rollouts halve it
        f"The trainer waits for answers {words}.",
        f"raise {run.named('rollout', 'replicas')}, or make the rollouts faster",
    )


def rollouts_wait(run: Figures) -> Finding | None:
    """Rollouts have nothing to do while the trainer trains."""
    seconds = run.seconds
    total = sum(seconds.values())
    # With overlap the held-out prompts are answered while the trainer trains.
    answering = run.answering_seconds + (0.0 if run.overlaps else seconds["evaluate"])
    idle = ratio(total - answering, total)
    if idle < 0.3:
        return None
    waited = f"{figure(total - answering, 1)} of {figure(total, 1)} s"
    says = f"The rollouts wait for the trainer {percent(idle)} of the time of {run.when_timed} ({waited})."
    if not run.overlaps:
        # What overlaps is the shorter of the two.
        return Finding(
            min(ratio(answering, total), idle),
            says,
            "set spec.method.overlap: 1, so that they answer the next window's prompts meanwhile, or give the trainer some of "
            "their hardware",
        )
    if run.setting("rollout", "replicas", default=1) <= 1:
        return None
    return Finding(idle / 10, says, f"fewer rollouts would do: lower {run.named('rollout', 'replicas')}")


def publications(run: Figures) -> Finding | None:
    """Writing weights and loading them."""
    share, words = run.of_time("publish", "activate")
    if share < 0.15:
        return None
    field = "rolloutUpdateFreq" if run.setting("method", "rolloutUpdateFreq", default=0) else "refUpdateFreq"
    return Finding(
        share,
        f"Publication and activation of weights take {words}.",
        f"raise {run.named('method', field)}: fewer, longer windows",
    )


def checkpoints(run: Figures) -> Finding | None:
    """Writing checkpoints."""
    share, words = run.of_time("checkpoint")
    if share < 0.1:
        return None
    every = run.named("trainer", "checkpointEverySteps")
    is_set = run.setting("trainer", "checkpointEverySteps", default=0) > 0
    return Finding(
        share,
        f"Checkpoints take {words}.",
        f"raise {every}" if is_set else f"set {every} above the {run.steps_per_window:g} steps of a window",
    )


def evaluations(run: Figures) -> Finding | None:
    """Answering the held-out prompts."""
    share, words = run.of_time("evaluate")
    if share < 0.2:
        return None
    every = run.named("data", "evaluation", "everyWindows")
    return Finding(share, f"Evaluations take {words}.", f"raise {every}, or lower spec.data.evaluation.limit")


def scoring(run: Figures) -> Finding | None:
    """Scoring answers."""
    share, words = run.of_time("score")
    if share < 0.15:
        return None
    return Finding(
        share,
        f"Scoring of answers takes {words}.",
        "make the rule faster, or lower its timeoutSeconds"
        if run.preference in ("rule", "groundTruth")
        else f"raise spec.preference.{run.preference}.concurrency, or give its model more servers (spec.scorers.replicas)",
    )


def reference_pass(run: Figures) -> Finding | None:
    """Computing the reference's log-probs."""
    share, words = run.of_time("reference")
    if share < 0.15:
        return None
    return Finding(
        share,
        f"The reference pass takes {words}.",
        "set spec.method.referenceLogprobs: rollouts, if the rest of spec.method allows it",
    )


# --- learning ------------------------------------------------------------------------------------------------------


def accuracy_fell(run: Figures) -> Finding | None:
    """Less accurate than the source model, by more than chance explains."""
    if len(run.evaluations) < 2 or _is_within_chance(run.evaluations[0], run.evaluations[-1]):
        return None
    first, last = run.evaluations[0], run.evaluations[-1]
    return Finding(
        1.9,
        f"Held-out accuracy is below the start: {_accuracy(first)}, {_accuracy(last)}.",
        f"see in `spinrun samples` what became of the answers; divide {run.named('trainer', 'learningRate')} by ten and start "
        "again",
    )


def steps_too_large(run: Figures) -> Finding | None:
    """The policy moves by whole nats within a window."""
    last = [line.values for line in run.steps if line.window == run.windows[-1].window]
    moves = [max(abs(values.get(f"rewards/{name}", 0.0)) for name in ("chosen", "rejected")) for values in last]
    largest = max(moves, default=0.0)
    if largest < 1:
        return None
    return Finding(
        1.7,
        f"Log-ratios to the reference move by {figure(largest, 1)} (times beta) within window {run.windows[-1].window}, where a "
        "few hundredths are usual.",
        f"divide {run.named('trainer', 'learningRate')} by ten, or raise {run.named('method', 'beta')}",
    )


def margins_mislead(run: Figures) -> Finding | None:
    """Margins grow while the accuracy falls."""
    best = _best(run)
    by_window = _newest_margins(run.steps)
    if best is None or len(by_window) < 2 or _is_within_chance(best, run.evaluations[-1]):
        return None
    first, last = by_window[0], by_window[-1]
    if last - first < 0.05:
        return None
    return Finding(
        1.5,
        f"Margins grow (from {figure(first, 3)} to {figure(last, 3)} in the mean of a window) while held-out accuracy falls: "
        f"{_accuracy(best)}, {_accuracy(run.evaluations[-1])}.",
        f"does spec.preference.{run.preference} prefer what the evaluation measures? If it does, raise "
        f"{run.named('method', 'beta')}, lower {run.named('trainer', 'learningRate')}, or take version {best.version}",
    )


def accuracy_stuck(run: Figures) -> Finding | None:
    """No better version for some evaluations."""
    best = _best(run)
    if best is None:
        return None
    since = len(run.evaluations) - 1 - run.evaluations.index(best)
    if since < 3 or not _is_within_chance(run.evaluations[0], run.evaluations[-1]):
        return None
    learned = run.of_prompts("all_right")[0] >= 0.5
    return Finding(
        1.2,
        f"Held-out accuracy has not risen for {since} evaluations: {_accuracy(best)}, {_accuracy(run.evaluations[-1])}.",
        "the prompts are learned: take harder ones, or end the run here"
        if learned
        else f"lower {run.named('trainer', 'learningRate')}, take more pairs a step, or take version {best.version}",
    )


def answers_grow(run: Figures) -> Finding | None:
    """Answers twice as long as they were, and not better."""
    lengths = [line.values["response_length/mean"] for line in run.all_windows if "response_length/mean" in line.values]
    shortest = min(lengths[:-1], default=0.0)
    is_better = len(run.evaluations) > 1 and run.evaluations[-1].values["accuracy"] > run.evaluations[0].values["accuracy"]
    if is_better or shortest <= 0 or lengths[-1] < 2 * shortest:
        return None
    return Finding(
        1.3,
        f"Answers have grown from {figure(shortest, 1)} to {figure(lengths[-1], 1)} tokens without a better accuracy.",
        f"does spec.preference.{run.preference} pay for length? If so change it; lower spec.method.lengthDesensitize, or raise "
        f"{run.named('method', 'beta')}",
    )


def rollouts_differ(run: Figures) -> Finding | None:
    """The rollouts' log-probs are not the trainer's."""
    differences = [line.values["logps/mismatch"] for line in run.steps if "logps/mismatch" in line.values]
    most = run.setting("method", "maxMismatch", default=0.05)
    if not differences or differences[-1] <= most:
        return None
    return Finding(
        1.1,
        f"Log-probs of rollouts and trainer differ by {figure(differences[-1], 3)} nats a token, more than "
        f"{run.named('method', 'maxMismatch')}.",
        "give both the same dtype (spec.model.dtype, spec.trainer.computeDtype), or set spec.method.referenceLogprobs: trainer",
    )


def judge_prefers_places(run: Figures) -> Finding | None:
    """A preference model whose choice changes with the order of the answers."""
    disagreements, requests = run.last("preference/disagreements_total"), run.last("preference/requests_total")
    share = ratio(disagreements, requests / 2)  # a comparison is asked in both orders
    if share < 0.2:
        return None
    return Finding(
        1.4,
        f"The preference changes with the order of the answers in {percent(share)} of the comparisons "
        f"({figure(disagreements, 0)} of {figure(requests / 2, 0)}).",
        f"change the template of spec.preference.{run.preference}, or take a stronger model",
    )


# --- trouble with servers ------------------------------------------------------------------------------------------


def rollouts_fail(run: Figures) -> Finding | None:
    """Calls to rollouts that failed, and answers that were refused."""
    failed, refused = run.last("rollouts/failed_calls_total"), run.last("rollouts/refused_total")
    if not failed and not refused:
        return None
    retried, prompts = run.last("rollouts/retried_total"), sum(run.prompts.values())
    return Finding(
        ratio(retried, prompts) * run.of_time("generate")[0],
        f"{figure(failed, 0)} calls to rollouts failed, {figure(refused, 0)} answers were refused and {figure(retried, 0)} "
        "prompts asked again since the attempt began.",
        "`spinrun logs --role agent` and `--role vllm` say why",
    )


def prompts_dropped(run: Figures) -> Finding | None:
    """Prompts that no model can answer."""
    dropped = run.last("rollouts/dropped_total")
    if not dropped:
        return None
    return Finding(
        0.01,
        f"{figure(dropped, 0)} prompts could not be answered by any rollout since the attempt began.",
        "`spinrun logs --role trainer` names them: are they too long? Lower spec.data.maxPromptTokens",
    )


RULES: tuple[Callable[[Figures], Finding | None], ...] = (
    accuracy_fell,
    steps_too_large,
    margins_mislead,
    judge_prefers_places,
    answers_grow,
    accuracy_stuck,
    rollouts_differ,
    too_easy,
    too_hard,
    answers_alike,
    same_text,
    without_rewards,
    windows_not_filled,
    steps_not_filled,
    answers_cut_off,
    trainer_waits,
    rollouts_wait,
    publications,
    checkpoints,
    evaluations,
    scoring,
    reference_pass,
    rollouts_fail,
    prompts_dropped,
)


# --- accuracies and margins ----------------------------------------------------------------------------------------------------


def _newest_margins(steps: Sequence[MetricsLine]) -> list[float]:
    """The mean margin of each window."""
    newest = {line.step: line for line in steps if "rewards/margins" in line.values}
    margins: dict[int, list[float]] = {}
    for line in newest.values():
        margins.setdefault(line.window, []).append(line.values["rewards/margins"])
    return [sum(margins[window]) / len(margins[window]) for window in sorted(margins)]


def _best(run: Figures) -> MetricsLine | None:
    """The most accurate version; the earlier of two that are equal."""
    return max(run.evaluations, key=lambda line: line.values["accuracy"], default=None)


def _is_within_chance(before: MetricsLine, after: MetricsLine) -> bool:
    """Whether `after` is not less accurate than `before`, or by no more than chance explains: whether the 95 % interval of their
    difference holds 0. Source: Newcombe 1998, method 10."""
    was, lower, _ = _share(before)
    now, _, upper = _share(after)
    if math.isnan(was + now):
        return True  # nobody knows how much of it is chance
    return was - now <= math.hypot(was - lower, upper - now)


def _share(evaluation: MetricsLine) -> tuple[float, float, float]:
    """An accuracy that is a share of prompts, and its 95 % interval; NaN where it is none."""
    accuracy, prompts = evaluation.values["accuracy"], evaluation.values.get("num_prompts", 0.0)
    return (accuracy, *wilson(accuracy, prompts)) if 0 <= accuracy <= 1 and prompts > 0 else (math.nan, math.nan, math.nan)


def _accuracy(line: MetricsLine) -> str:
    return f"{figure(line.values['accuracy'], 3)} at version {line.version}"
