"""What limits a run, by rules over its figures: each rule has a run in which it speaks, and says nothing about a healthy one."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_cli.show import findings as rules
from spinrun_cli.show.findings import RULES, Finding, findings
from spinrun_cli.show.run_data import RunData
from spinrun_cli.show.run_figures import Figures
from spinrun_protocol.ledger import MetricsLine

Json = dict[str, Any]

SPEC: Json = {
    "preference": {"rule": {"kind": "lastNumber"}},
    "method": {"name": "onlineDPO", "beta": 0.1, "refUpdateFreq": 4, "minMargin": 0.0, "maxMismatch": 0.05, "overlap": 0},
    "rollout": {"replicas": 1, "samplesPerPrompt": 8, "temperature": 0.7, "maxTokens": 16},
    "trainer": {"learningRate": 1e-6},
    "data": {"evaluation": {"everyWindows": 1}},
}
HEALTHY: Json = {
    "samples": 512.0,
    "pairs": 58.0,
    "paired_prompts": 58.0,
    "ties": 6.0,
    "all_right": 4.0,
    "all_wrong": 2.0,
    "other_ties": 0.0,
    "identical": 0.0,
    "unrated": 0.0,
    "response_length/mean": 8.0,
    "response_length/truncated": 0.01,
    "throughput/samples_per_second": 10.0,
    "timing/generate_seconds": 48.0,
    "timing/train_seconds": 40.0,
    "timing/activate_seconds": 2.0,
    "timing/publish_seconds": 2.0,
    "timing/evaluate_seconds": 4.0,
    "timing/score_seconds": 1.0,
    "timing/reference_seconds": 5.0,
    "timing/checkpoint_seconds": 1.0,
}
LEARNS = (0.5, 0.6, 0.7, 0.8)


def line(event: Any, window: int, values: Json, *, attempt: int = 1, step: int | None = None) -> MetricsLine:
    place: Json = {"window": window, "step": 4 * window if step is None else step, "version": window}
    return MetricsLine(event=event, attempt=attempt, time=float(window), values=values, **place)


def run(
    values: Json | None = None,
    spec: Json | None = None,
    *,
    accuracies: Sequence[float] = LEARNS,
    margins: Sequence[float] = (0.01, 0.01, 0.01),
    step: Json | None = None,
) -> Figures:
    """A healthy run of three windows of 64 prompts, but for some figures of each window and some blocks of its spec."""
    document = {"spec": SPEC | {name: SPEC.get(name, {}) | block for name, block in (spec or {}).items()}}
    windows = [line("window", window, HEALTHY | (values or {})) for window in range(3)]
    steps = [
        line("step", window, {"rewards/margins": margin} | (step or {}), step=window) for window, margin in enumerate(margins)
    ]
    evaluated = [line("evaluation", number, {"accuracy": each, "num_prompts": 400.0}) for number, each in enumerate(accuracies)]
    return Figures(RunData("run", document, windows=windows, steps=steps, evaluations=evaluated))


RULE_CASES: list[tuple[Callable[[Figures], Finding | None], Figures, str, str]] = [
    (
        rules.too_easy,
        run({"paired_prompts": 20.0, "all_right": 40.0, "all_wrong": 4.0}),
        "62 % of the prompts of windows 0 to 2 (120 of 192) have only right answers, and teach nothing.",
        "set spec.method.sampling.passRate.max below 1",
    ),
    (
        rules.too_easy,
        run({"paired_prompts": 24.0, "all_right": 40.0, "all_wrong": 0.0}, {"method": {"sampling": {"passRate": {"max": 0.9}}}}),
        "62 % of the prompts",
        "lower spec.method.sampling.passRate.max (0.9)",
    ),
    (
        rules.too_hard,
        run({"paired_prompts": 20.0, "all_right": 4.0, "all_wrong": 40.0}),
        "(120 of 192) have only wrong answers",
        "whether spec.preference.rule reads right answers as right; if it does, set spec.method.sampling.passRate.min above 0",
    ),
    (
        rules.answers_alike,
        run({"paired_prompts": 32.0, "all_right": 0.0, "all_wrong": 0.0, "other_ties": 32.0}, {"method": {"minMargin": 0.5}}),
        "50 % of the prompts of windows 0 to 2 (96 of 192) have answers with equal rewards, or closer than spec.method.minMargin "
        "(0.5), and teach nothing.",
        "lower spec.method.minMargin (0.5), or raise spec.rollout.temperature (0.7) or spec.rollout.samplesPerPrompt (8)",
    ),
    (
        rules.same_text,
        run({"identical": 8.0}),
        "have a best and a worst answer of the same text",
        "gives equal answers equal rewards",
    ),
    (
        rules.same_text,
        run({"identical": 64.0}, {"method": {"name": "spin"}}),
        "50 % of the prompts of windows 0 to 2 (192 of 384) get the true answer from the model",
        "take other prompts",
    ),
    (
        rules.without_rewards,
        run({"unrated": 16.0, "preference/failures_total": 90.0, "preference/requests_total": 900.0}),
        "20 % of the prompts of windows 0 to 2 (48 of 240) have fewer than two rated answers: the preference model's server "
        "failed on 90 of 900 requests.",
        "timeoutSeconds",
    ),
    (
        rules.without_rewards,
        run({"unrated": 16.0, "truncated_samples": 100.0}, {"preference": {"rule": {"kind": "lastNumber", "truncated": "drop"}}}),
        "300 of 1536 answers were cut off and dropped",
        "truncated: zero",
    ),
    (
        rules.without_rewards,
        run({"unrated": 16.0, "dropped_samples": 128.0}),
        "384 of 1536 answers have no reward",
        "--role trainer",
    ),
    (
        rules.windows_not_filled,
        run(
            {"pairs": 40.0, "prompts": 256.0},
            {"trainer": {"pairsPerStep": 16}, "method": {"sampling": {"maxPromptsFactor": 4.0}}},
        ),
        "3 of 3 windows were not filled: window 2 has 40 of 64 pairs after 256 prompts.",
        "raise spec.method.sampling.maxPromptsFactor (4)",
    ),
    (
        rules.steps_not_filled,
        run({"paired_prompts": 20.0, "all_right": 40.0, "all_wrong": 4.0}),
        "Steps are small: 69 % of the prompts",
        "set spec.trainer.pairsPerStep",
    ),
    (
        rules.answers_cut_off,
        run({"response_length/truncated": 0.3}),
        "30 % of the answers of windows 0 to 2 were cut off at spec.rollout.maxTokens (16).",
        "raise spec.rollout.maxTokens",
    ),
    (
        rules.trainer_waits,
        run({"timing/generate_seconds": 145.0}),
        "The trainer waits for answers 73 % of the time of windows 0 to 2 (435.0 of 598.0 s).",
        "raise spec.rollout.replicas (1)",
    ),
    (
        rules.rollouts_wait,
        run({"samples": 100.0, "timing/generate_seconds": 10.0}),
        "The rollouts wait for the trainer 78 % of the time of windows 0 to 2 (151.0 of 193.0 s).",
        "set spec.method.overlap: 1",
    ),
    (
        rules.rollouts_wait,
        run({"samples": 100.0, "timing/generate_seconds": 0.0}, {"method": {"overlap": 1}, "rollout": {"replicas": 4}}),
        "The rollouts wait for the trainer 82 % of the time",
        "lower spec.rollout.replicas (4)",
    ),
    (
        rules.publications,
        run({"timing/publish_seconds": 30.0}),
        "Publication and activation of weights take 24 % of the time of windows 0 to 2 (94.0 of 391.0 s).",
        "raise spec.method.refUpdateFreq (4)",
    ),
    (
        rules.publications,
        run({"timing/publish_seconds": 30.0}, {"method": {"rolloutUpdateFreq": 2}}),
        "take 24 %",
        "raise spec.method.rolloutUpdateFreq (2)",
    ),
    (rules.checkpoints, run({"timing/checkpoint_seconds": 30.0}), "Checkpoints take 23 %", "above the 4 steps of a window"),
    (rules.evaluations, run({"timing/evaluate_seconds": 50.0}), "Evaluations take 34 %", "spec.data.evaluation.everyWindows (1)"),
    (rules.scoring, run({"timing/score_seconds": 50.0}), "Scoring of answers takes 33 %", "make the rule faster"),
    (
        rules.reference_pass,
        run({"timing/reference_seconds": 40.0}),
        "The reference pass takes 29 %",
        "referenceLogprobs: rollouts",
    ),
    (
        rules.accuracy_fell,
        run(accuracies=(0.5, 0.5, 0.2)),
        "Held-out accuracy is below the start: 0.500 at version 0, 0.200 at version 2.",
        "divide spec.trainer.learningRate (1e-06) by ten",
    ),
    (
        rules.steps_too_large,
        run(step={"rewards/chosen": -4.2, "rewards/rejected": -4.0}),
        "Log-ratios to the reference move by 4.2 (times beta) within window 2",
        "divide spec.trainer.learningRate (1e-06) by ten, or raise spec.method.beta (0.1)",
    ),
    (
        rules.margins_mislead,
        run(accuracies=(0.5, 0.8, 0.6), margins=(0.01, 0.02, 0.5)),
        "Margins grow (from 0.010 to 0.500 in the mean of a window) while held-out accuracy falls: 0.800 at version 1, 0.600 at "
        "version 2.",
        "take version 1",
    ),
    (
        rules.accuracy_stuck,
        run(accuracies=(0.5, 0.8, 0.79, 0.78, 0.79)),
        "Held-out accuracy has not risen for 3 evaluations: 0.800 at version 1, 0.790 at version 4.",
        "take version 1",
    ),
    (
        rules.accuracy_stuck,
        run({"paired_prompts": 4.0, "all_right": 60.0}, accuracies=(0.5, 0.8, 0.79, 0.78, 0.79)),
        "has not risen for 3 evaluations",
        "the prompts are learned",
    ),
    (
        rules.rollouts_differ,
        run(step={"logps/mismatch": 0.2}),
        "differ by 0.200 nats a token, more than spec.method.maxMismatch (0.05).",
        "the same dtype",
    ),
    (
        rules.judge_prefers_places,
        run({"preference/disagreements_total": 30.0, "preference/requests_total": 200.0}),
        "changes with the order of the answers in 30 % of the comparisons (30 of 100).",
        "change the template",
    ),
    (
        rules.rollouts_fail,
        run({"rollouts/failed_calls_total": 3.0, "rollouts/retried_total": 12.0}),
        "3 calls to rollouts failed, 0 answers were refused and 12 prompts asked again since the attempt began.",
        "--role agent",
    ),
    (rules.prompts_dropped, run({"rollouts/dropped_total": 7.0}), "7 prompts could not be answered", "spec.data.maxPromptTokens"),
]


@pytest.mark.parametrize(("rule", "figures", "says", "change"), RULE_CASES, ids=[f"{case[0].__name__}" for case in RULE_CASES])
def test_a_rule_says_what_is_so_with_its_figures_and_what_to_change(
    rule: Callable[[Figures], Finding | None], figures: Figures, says: str, change: str
) -> None:
    found = rule(figures)
    assert found is not None
    assert says in found.says
    assert change in found.change


def test_answers_that_grow_without_being_better_are_told() -> None:
    windows = [
        line("window", window, HEALTHY | {"response_length/mean": length}) for window, length in enumerate((19.0, 30.0, 40.0))
    ]
    found = rules.answers_grow(Figures(RunData("run", {"spec": SPEC}, windows=windows)))
    assert found is not None
    assert found.says == "Answers have grown from 19.0 to 40.0 tokens without a better accuracy."


def test_a_model_that_scores_slowly_gets_more_requests_at_once() -> None:
    lines = [line("window", 0, HEALTHY | {"timing/score_seconds": 50.0})]
    found = rules.scoring(Figures(RunData("run", {"spec": {"preference": {"judge": {}}}}, windows=lines)))
    assert found is not None
    assert "spec.preference.judge.concurrency" in found.change


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in RULE_CASES} | {rules.answers_grow} == set(RULES)


def test_a_healthy_run_has_nothing_but_that_its_rollouts_could_work_meanwhile() -> None:
    assert [finding.says[:33] for finding in findings(run())] == ["The rollouts wait for the trainer"]
    assert findings(run({"samples": 1000.0}, {"method": {"overlap": 1}})) == []


def test_nothing_is_said_before_the_first_window() -> None:
    assert findings(Figures(RunData("run"))) == []


def test_what_spoils_the_learning_comes_first_and_the_rest_by_the_time_that_it_costs() -> None:
    values = {"paired_prompts": 20.0, "all_right": 44.0, "timing/checkpoint_seconds": 200.0}
    found = findings(run(values, accuracies=(0.5, 0.5, 0.2)))
    assert [finding.says.split()[0] for finding in found[:3]] == ["Held-out", "Checkpoints", "The"]
    assert [finding.cost for finding in found] == sorted((finding.cost for finding in found), reverse=True)


def test_an_accuracy_that_is_lower_by_chance_alone_is_not_said_to_have_fallen() -> None:
    assert rules.accuracy_fell(run(accuracies=(0.5, 0.44))) is None
    assert rules.accuracy_fell(run(accuracies=(0.5, 0.42))) is not None
    assert rules.accuracy_fell(run(accuracies=(-3.0, -9.0))) is None, "rewards of a model are no shares"
    assert rules.margins_mislead(run(accuracies=(0.5, 0.8, 0.79), margins=(0.01, 0.02, 0.5))) is None
    assert rules.margins_mislead(run(accuracies=(0.5, 0.8, 0.6), margins=(0.01, 0.02, 0.03))) is None


def test_windows_that_are_filled_are_not_said_to_have_small_steps() -> None:
    values = {"paired_prompts": 20.0, "all_right": 44.0}
    assert rules.steps_not_filled(run(values)) is not None
    assert rules.steps_not_filled(run(values | {"prompts": 64.0})) is None
    assert rules.steps_not_filled(run(values, {"trainer": {"pairsPerStep": 5}})) is None


def test_windows_from_before_ties_were_told_apart_have_them_as_equal_rewards() -> None:
    old = {name: HEALTHY[name] for name in HEALTHY if name not in ("paired_prompts", "all_right", "all_wrong", "other_ties")}
    windows = [line("window", window, old | {"pairs": 32.0, "ties": 32.0}) for window in range(2)]
    found = rules.answers_alike(Figures(RunData("run", {"spec": SPEC}, windows=windows)))
    assert found is not None
    assert found.says.startswith("50 % of the prompts of windows 0 to 1 (64 of 128) have answers with equal rewards, and")
    assert rules.too_easy(Figures(RunData("run", {"spec": SPEC}, windows=windows))) is None


def test_a_window_that_an_attempt_repeats_counts_as_it_was_done_last() -> None:
    lines = [
        line("window", 0, {"pairs": 10.0}),
        line("window", 1, {"pairs": 10.0}),
        line("window", 1, {"pairs": 30.0}, attempt=2),
    ]
    assert Figures(RunData("run", windows=lines)).total("pairs") == 40


def test_a_window_that_an_attempt_takes_from_the_ledger_does_not_tell_how_long_windows_take() -> None:
    lines = [line("window", 0, HEALTHY), line("window", 1, {"pairs": 58.0, "timing/train_seconds": 500.0}, attempt=2)]
    figures = Figures(RunData("run", windows=lines))
    assert (figures.when, figures.when_timed, figures.seconds["train"]) == ("windows 0 to 1", "window 0", 40.0)


def test_an_evaluation_that_an_attempt_repeats_counts_once() -> None:
    lines = [line("evaluation", version, {"accuracy": 0.5}) for version in (0, 1, 1, 1, 1)]
    assert rules.accuracy_stuck(Figures(RunData("run", windows=[line("window", 0, HEALTHY)], evaluations=lines))) is None


def test_the_wait_for_vllm_to_start_is_no_cost_of_activation() -> None:
    lines = [line("window", window, {"timing/activate_seconds": 60.0 if window in (0, 2) else 1.0, "timing/train_seconds": 9.0},
                  attempt=1 + window // 2) for window in range(4)]  # fmt: skip
    assert Figures(RunData("run", windows=lines[:2])).seconds["activate"] == 1
    assert Figures(RunData("run", windows=lines)).seconds["activate"] == 2


numbers = st.floats(-1e30, 1e30, allow_nan=False) | st.sampled_from([0.0, 0.5, 1.0, 64.0])
settings = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner)
)
names = st.sampled_from([*HEALTHY, "preference/requests_total", "preference/disagreements_total", "rollouts/failed_calls_total"])


@given(
    st.lists(st.dictionaries(names, numbers), max_size=5),
    st.lists(numbers, max_size=5),
    st.recursive(
        settings, lambda inner: st.dictionaries(st.sampled_from([*SPEC, *SPEC["method"], "sampling", "passRate"]), inner)
    ),
)
def test_whatever_the_figures_and_the_spec_are_sentences_come_of_them(
    windows: list[Json], accuracies: list[float], spec: object
) -> None:
    lines = [line("window", number, values) for number, values in enumerate(windows)]
    evaluated = [line("evaluation", number, {"accuracy": each}) for number, each in enumerate(accuracies)]
    steps = [line("step", number, {"rewards/margins": each, "logps/mismatch": each}) for number, each in enumerate(accuracies)]
    for finding in findings(Figures(RunData("run", {"spec": spec}, windows=lines, steps=steps, evaluations=evaluated))):
        assert finding.says.endswith(".")
        assert finding.change
        assert "nan" not in finding.says + finding.change
