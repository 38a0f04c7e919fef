"""What is said when window after window gives no pair."""

from collections.abc import Sequence
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_api.run import SpinRun
from spinrun_api.spec import Rule
from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.errors import NoPairsError
from spinrun_worker.methods.pairing import Pairing
from spinrun_worker.records import Answers, PromptRecord
from spinrun_worker.rewards import RewardFunction, ScoreResult, build_rule
from spinrun_worker.rewards.score import Failure, Groups, Score
from spinrun_worker.trainer.figures import mean_reward
from spinrun_worker.trainer.no_pairs import why_no_pairs
from spinrun_worker.trainer.pairs import PairMaker

Json = dict[str, Any]

LIST = Failure("no number", "returned list: [1.0]")
CRASH = Failure("crashed", "the rule's process died: exit code 7")


class FakeRule:
    """Gives the scores that it is told, sample after sample."""

    def __init__(self, scores: Sequence[Score]) -> None:
        self.counts: dict[str, int] = {}
        self.scores = scores

    def score(self, groups: Groups) -> ScoreResult:
        return ScoreResult.of(groups, self.scores)

    grade = score

    def close(self) -> None:
        pass


def tiny_run(method: Json, **blocks: Json) -> SpinRun:
    rule = {"kind": "lastNumber"}
    spec = {
        "model": {"source": "/none"},
        "data": {"prompts": {"source": "arithmetic"}},
        "method": method,
        "preference": {"groundTruth": {"rule": rule}} if method.get("name") == "spin" else {"rule": rule},
        "rollout": {"samplesPerPrompt": 2, "maxTokens": 8},
        "duration": {"windows": 9},
    }
    metadata = {"name": "tiny", "namespace": "local"}
    return parse_run({"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": spec | blocks})


def pair_maker(scorer: RewardFunction, **method: Any) -> PairMaker:
    """True answers are all cut off."""
    return PairMaker(tiny_run(method), scorer, lambda answer: Sample(tokens=(1,), text=answer, finish_reason="length"), None)


def answers(*texts: Sequence[str], truth: str = "1") -> Answers:
    return [
        (
            PromptRecord(f"row-{row}", (1,), "question", truth),
            SampleGroup(
                id=f"row-{row}",
                version=0,
                digest="0" * 32,
                samples=tuple(Sample(tokens=(ord(text),), text=text, finish_reason="stop") for text in of_prompt),
            ),
        )
        for row, of_prompt in enumerate(texts)
    ]


def cut_off(answered: Answers) -> Answers:
    """The same answers, each cut off at maxTokens."""
    return [
        (
            prompt,
            group.model_copy(
                update={"samples": tuple(each.model_copy(update={"finish_reason": "length"}) for each in group.samples)}
            ),
        )
        for prompt, group in answered
    ]


def end_of(scores: Sequence[Score], texts: Sequence[str] = ("ab", "cd"), before: Sequence[Score] | None = None) -> str:
    """What is said of three windows without a pair. before: scores of the first two, in place of the same ones."""
    maker = pair_maker(FakeRule(scores), minMargin=0.25)
    scored = maker.score(answers(*texts))
    earlier = pair_maker(FakeRule(scores if before is None else before)).score(answers(*texts))
    with pytest.raises(NoPairsError) as error:
        maker.refuse_endless_ties(4, scored, lambda _: 0, lambda _: earlier)
    return str(error.value)


LOOK = "Look at the samples (windows/000004/samples.parquet): "


def test_prompts_that_are_too_easy_are_said_to_be_so() -> None:
    assert end_of([1.0, 1.0, 1.0, 1.0]) == (
        f"windows 2 to 4 gave no pair: every answer was right: the prompts are too easy. {LOOK}"
        "if they are as right as their rewards say, take harder prompts (spec.data.prompts), or end the run here"
    )


def test_prompts_that_are_too_hard_or_a_rule_that_reads_no_answer_are_said_to_be_so() -> None:
    assert end_of([0.0, 0.0, -1.0, -1.0]) == (
        "windows 2 to 4 gave no pair: every answer was wrong: the prompts are too hard, or spec.preference.rule does not read "
        f"the answers. {LOOK}are there right ones with reward 0? Then correct spec.preference.rule, or what the prompts ask for. "
        "Else take easier prompts, or raise spec.rollout.samplesPerPrompt (2)"
    )


def test_rewards_that_are_equal_in_between_or_too_close_are_said_to_be_so() -> None:
    assert end_of([0.5, 0.5, 0.0, 0.125]) == (
        "windows 2 to 4 gave no pair: every prompt's answers have rewards that are equal, or closer than spec.method.minMargin "
        f"(0.25). {LOOK}does spec.preference.rule tell them apart? Raise spec.rollout.temperature (0.7) or "
        "spec.rollout.samplesPerPrompt (2), or lower spec.method.minMargin (0.25)"
    )


def test_several_reasons_are_counted_over_all_three_windows_and_the_first_has_its_remedy() -> None:
    message = end_of([1.0, 1.0, 0.5, 0.5], before=[0.0, 0.0, 1.0, 1.0])
    assert message.startswith(
        "windows 2 to 4 gave no pair: of 6 prompts 3 have only right answers, 2 have only wrong answers, "
        "1 have answers with rewards that are equal, or closer than spec.method.minMargin (0.25). Look at"
    )
    assert message.endswith("take harder prompts (spec.data.prompts), or end the run here")


def test_answers_that_nobody_rated_are_said_to_be_so_with_counts_by_reason() -> None:
    assert end_of([LIST, LIST, LIST, CRASH]) == (
        "windows 2 to 4 gave no pair: no answer was rated ("
        "answers without a reward: 3 (no number); the first, of prompt row-0: returned list: [1.0]; "
        f"answers without a reward: 1 (crashed); the first, of prompt row-1: the rule's process died: exit code 7). {LOOK}"
        "can spec.preference.rule rate them, does it read the true answers, and is spec.rollout.maxTokens (8) long enough?"
    )


def test_too_few_rated_answers_are_counted_beside_other_reasons() -> None:
    message = end_of([1.0, LIST, 0.0, 0.0, 1.0, 0.0], ("ab", "cd", "ee"))
    assert (
        "of 9 prompts 3 have only wrong answers, 3 have too few rated answers ("
        "answers without a reward: 1 (no number); the first, of prompt row-0: returned list: [1.0]), "
        "3 have pairs of the same tokens only, differently rewarded."
    ) in message


def without_pairs(run: SpinRun, **counts: int) -> str:
    """What is said of three windows of one prompt each, by how many of them have no pair for which reason."""
    scored = pair_maker(FakeRule([0.0, 0.0])).score(answers("ab"))
    pairing = Pairing((), **{"ties": 0, "identical": 0, "unrated": 0, "dropped_samples": 0} | counts)
    return why_no_pairs(run.spec, range(2, 5), [scored] * 3, [pairing] * 3)


def test_a_model_that_gives_the_true_answers_is_said_to_be_at_its_end() -> None:
    spin = tiny_run({"name": "spin"}, preference={"groundTruth": {}})
    assert without_pairs(spin, identical=1).startswith(
        "windows 2 to 4 gave no pair: the model gives the true answer to every prompt, and has nothing left to learn from "
        "spec.data.prompts. Look at"
    )


def test_answers_no_better_than_version_0s_are_said_to_be_so() -> None:
    base = tiny_run({"pairing": "bestVsBase"})
    assert "no prompt's best answer is better than version 0's. Look" in without_pairs(base, ties=1)
    assert "every answer was right" in without_pairs(base, ties=1, all_right=1)


def test_where_a_model_gives_the_rewards_equal_ones_are_neither_right_nor_wrong() -> None:
    model = {"rewardModel": {"url": "http://scores:8000", "model": "scores"}}
    message = without_pairs(tiny_run({}, preference=model), ties=1, all_right=1)
    assert "every prompt's answers have equal rewards." in message
    assert "does spec.preference.rewardModel tell them apart?" in message
    assert "minMargin" not in message


def test_windows_without_any_answer_are_not_said_to_be_ties() -> None:
    assert end_of([], ()).startswith(
        "windows 2 to 4 gave no pair: no prompt was answered. Are those of spec.data.prompts too long"
    )


def test_only_prompts_whose_true_answer_is_unusable_are_left_out() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber")))
    read, unread = maker.grade(answers("1", "x")), maker.grade(answers("1", "x", truth="one"))
    assert [group.rewards for group in read + unread] == [(1.0,), (0.0,), (None,), (None,)]
    assert maker.unusable(read) == {}
    assert maker.unusable(unread) == dict.fromkeys(["row-0", "row-1"], "the true answer must hold a number, got 'one'")


def test_answers_that_were_cut_off_are_named_where_they_count_as_wrong() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber")))
    scored = maker.score([*answers("12"), *cut_off(answers("12"))])
    assert [group.rewards for group in scored.groups] == [(1.0, 0.0), (0.0, 0.0)]
    scored = maker.score(cut_off(answers("12")))
    with pytest.raises(
        NoPairsError, match=r" 6 of 6 answers were cut off at spec\.rollout\.maxTokens \(8\) and so count as wrong\. "
    ):
        maker.refuse_endless_ties(4, scored, lambda _: 0, lambda _: scored)


def test_answers_that_were_cut_off_are_named_where_they_are_left_out() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber", truncated="score")), truncated="drop")
    scored = maker.score(cut_off(answers("12")))
    assert [group.rewards for group in scored.groups] == [(1.0, 0.0)], "the preference has its say"
    with pytest.raises(
        NoPairsError,
        match=r"every prompt has too few rated answers\. 6 of 6 answers were cut off at spec\.rollout\.maxTokens \(8\) "
        r"and so make no pair \(spec\.method\.truncated: drop\)",
    ):
        maker.refuse_endless_ties(4, scored, lambda _: 0, lambda _: scored)


def test_a_run_of_spin_that_drops_all_answers_does_not_say_that_the_model_knows_them() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber")), name="spin", truncated="drop")
    scored = maker.score(cut_off(answers("ab")))
    with pytest.raises(NoPairsError, match=r"there is nothing to learn from\. 6 of 6 answers were cut off") as raised:
        maker.refuse_endless_ties(4, scored, lambda _: 0, lambda _: scored)
    assert "true answer to every prompt" not in str(raised.value)
    assert "3 of 3 true answers are longer than spec.rollout.maxTokens." in str(raised.value)


@pytest.mark.parametrize(
    ("truncated", "want"), [("score", "cut off there, without an end token"), ("drop", "and make no pair: raise it")]
)
def test_true_answers_that_are_cut_off_are_counted_in_the_log(
    truncated: str, want: str, caplog: pytest.LogCaptureFixture
) -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber")), name="spin", truncated=truncated)
    maker.warn_of_truncated_truths(3, maker.pair(maker.score(answers("ab", "cd"))), 2)
    (message,) = caplog.messages
    assert message.startswith("window 3: 2 of 2 true answers are longer than spec.rollout.maxTokens (8) and ")
    assert want in message


def test_only_cut_off_answers_with_a_readable_true_answer_count_in_the_accuracy() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber", truncated="drop")))
    read, unread = maker.grade(cut_off(answers("1"))), maker.grade(cut_off(answers("1", truth="one")))
    assert [group.rewards for group in read + unread] == [(None,), (None,)]
    assert maker.unusable(read) == {}
    assert maker.unusable(unread).keys() == {"row-0"}
    assert mean_reward(read) == 0


@pytest.mark.parametrize("with_pairs", [2, 3, 4])
def test_a_window_with_pairs_among_the_last_three_lets_the_run_continue(with_pairs: int) -> None:
    maker = pair_maker(FakeRule([LIST, LIST]))
    scored = maker.score(answers("ab"))
    maker.refuse_endless_ties(4, scored, lambda window: int(window == with_pairs), lambda _: scored)
    maker.refuse_endless_ties(1, scored, lambda _: 0, lambda _: scored)
