"""What is said when window after window gives no pair."""

from collections.abc import Sequence
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_api.spec import Rule
from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.errors import NoPairsError
from spinrun_worker.records import Answers, PromptRecord
from spinrun_worker.rewards import RewardFunction, ScoreResult, build_rule
from spinrun_worker.rewards.score import Failure, Groups, Score
from spinrun_worker.trainer.figures import mean_reward
from spinrun_worker.trainer.pairs import PairMaker

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


def pair_maker(scorer: RewardFunction, **method: Any) -> PairMaker:
    """True answers are all cut off."""
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
    run = parse_run({"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": spec})
    return PairMaker(run, scorer, lambda answer: Sample(tokens=(1,), text=answer, finish_reason="length"), None)


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


def end_of(scores: Sequence[Score], texts: Sequence[str] = ("ab", "cd")) -> str:
    maker = pair_maker(FakeRule(scores), minMargin=0.25)
    scored = maker.score(answers(*texts))
    with pytest.raises(NoPairsError) as error:
        maker.refuse_endless_ties(4, scored, lambda _: 0)
    return str(error.value)


def test_ties_are_said_to_be_ties() -> None:
    message = end_of([1.0, 1.0, 0.0, 0.125])
    assert message.startswith("windows 2 to 4 gave no pair: every prompt's answers have rewards that are equal, or closer than ")
    assert (
        "minMargin (0.25). Look at the samples (windows/000004/samples.parquet): do answers match spec.preference.rule?"
        in message
    )


def test_answers_that_nobody_rated_are_said_to_be_so_with_counts_by_reason() -> None:
    assert end_of([LIST, LIST, LIST, CRASH]) == (
        "windows 2 to 4 gave no pair: no answer of window 4 was rated ("
        "answers without a reward: 3 (no number); the first, of prompt row-0: returned list: [1.0]; "
        "answers without a reward: 1 (crashed); the first, of prompt row-1: the rule's process died: exit code 7). "
        "Look at the samples (windows/000004/samples.parquet): "
        "can spec.preference.rule rate them, does it read the true answers, and is spec.rollout.maxTokens (8) long enough?"
    )


def test_too_few_rated_answers_are_counted_beside_ties() -> None:
    message = end_of([1.0, LIST, 0.0, 0.0, 1.0, 0.0], ("ab", "cd", "ee"))
    assert (
        "window 4 has 3 prompts, 1 with too few rated answers ("
        "answers without a reward: 1 (no number); the first, of prompt row-0: returned list: [1.0]), "
        "1 with rewards that are equal, or closer than spec.method.minMargin (0.25), "
        "1 with pairs of the same tokens only, differently rewarded."
    ) in message


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
    with pytest.raises(
        NoPairsError, match=r" 2 of 2 answers were cut off at spec\.rollout\.maxTokens \(8\) and so count as wrong\. "
    ):
        maker.refuse_endless_ties(4, maker.score(cut_off(answers("12"))), lambda _: 0)


def test_answers_that_were_cut_off_are_named_where_they_are_left_out() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber", truncated="score")), truncated="drop")
    scored = maker.score(cut_off(answers("12")))
    assert [group.rewards for group in scored.groups] == [(1.0, 0.0)], "the preference has its say"
    with pytest.raises(
        NoPairsError,
        match=r"1 with too few rated answers\. 2 of 2 answers were cut off at spec\.rollout\.maxTokens \(8\) and so make no pair "
        r"\(spec\.method\.truncated: drop\)",
    ):
        maker.refuse_endless_ties(4, scored, lambda _: 0)


def test_a_run_of_spin_that_drops_all_answers_does_not_say_that_the_model_knows_them() -> None:
    maker = pair_maker(build_rule(Rule(kind="lastNumber")), name="spin", truncated="drop")
    with pytest.raises(NoPairsError, match=r"there is nothing to learn from\. 2 of 2 answers were cut off") as raised:
        maker.refuse_endless_ties(4, maker.score(cut_off(answers("ab"))), lambda _: 0)
    assert "true answer to every prompt" not in str(raised.value)
    assert "1 of 1 true answers are longer than spec.rollout.maxTokens." in str(raised.value)


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
    maker.refuse_endless_ties(4, scored, lambda window: int(window == with_pairs))
    maker.refuse_endless_ties(1, scored, lambda _: 0)
