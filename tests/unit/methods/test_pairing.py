import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.spec import Method, Sppo
from spinrun_protocol.wire import Sample
from spinrun_worker.methods.pairing import Pairing, pair_groups, pair_with_base, pair_with_truths
from spinrun_worker.records import ByToken, PromptRecord, ScoredGroup
from spinrun_worker.trainer.figures import mean_reward, window_figures
from spinrun_worker.trainer.schedule import divide

DOCS = Path(__file__).resolve().parents[3] / "docs"
ALL_PAIRINGS = get_args(Method.model_fields["pairing"].annotation)
PAIRINGS = [pairing for pairing in ALL_PAIRINGS if pairing != "bestVsBase"]
"""Those among a prompt's own samples."""
SPPO = {"name": "sppo", "loss": "sppo"}


def group(name: str, rewards: Sequence[float | None], tokens: Sequence[tuple[int, ...]] | None = None) -> ScoredGroup:
    """A prompt whose sample number i is the token i, unless said otherwise."""
    tokens = tokens or [(index,) for index in range(len(rewards))]
    samples = tuple(Sample(tokens=ids, text="", finish_reason="stop") for ids in tokens)
    return ScoredGroup(PromptRecord(name, (100, 101), "question"), samples, tuple(rewards))


def pair(*groups: ScoredGroup, seed: Any = 0, **method: Any) -> Pairing:
    return pair_groups(groups, Method.model_validate(method), seed=seed)


def indices(pairing: Pairing) -> list[tuple[int, int]]:
    """(chosen, rejected) of each pair, as numbers of samples."""
    return [(made.chosen[0], made.rejected[0]) for made in pairing.pairs]


@pytest.mark.parametrize(
    ("rewards", "want"),
    [
        ((0.0, 1.0), (1, 0)),
        ((0.5, 0.1, 0.9, 0.3), (2, 1)),
        ((1.0, 0.0, 1.0, 0.0), (0, 1)),
        ((0.0, 0.0, 1.0), (2, 0)),
        ((None, 1.0, 0.0), (1, 2)),
        ((math.nan, 1.0, math.inf, 0.0, -math.inf), (1, 3)),
        ((-1.0, -2.0), (0, 1)),
        ((-0.0, 1.0, 0.0), (1, 0)),
    ],
)
def test_best_against_worst_and_the_first_among_equals(rewards: tuple[float | None, ...], want: tuple[int, int]):
    (made,) = pair(group("p", rewards)).pairs
    assert (made.chosen, made.rejected) == ((want[0],), (want[1],))
    assert (made.chosen_reward, made.rejected_reward) == (rewards[want[0]], rewards[want[1]])
    assert (made.prompt_id, made.prompt) == ("p", (100, 101))
    assert (made.reference_chosen, made.reference_rejected) == (None, None)


def with_logprobs(scored: ScoredGroup, *logprobs: float) -> ScoredGroup:
    samples = zip(scored.samples, logprobs, strict=True)
    return replace(scored, samples=tuple(sample.model_copy(update={"logprob": value}) for sample, value in samples))


def test_log_probs_of_the_rollouts_go_with_their_samples():
    (made,) = pair(with_logprobs(group("p", (0.5, 0.1, 0.9)), -1.0, -2.0, -3.0)).pairs
    assert (made.reference_chosen, made.reference_rejected) == (-3.0, -2.0)


def test_an_answer_that_is_alone_has_log_probs_beside_nobodys():
    method = {"name": "sppo", "loss": "sppoAdvantage"}
    couple, alone = pair(with_logprobs(group("p", (0.0, 0.5, 1.0)), -1.0, -2.0, -3.0), **method).pairs
    assert (couple.reference_chosen, couple.reference_rejected) == (-3.0, -1.0)
    assert {alone.reference_chosen, alone.reference_rejected} == {-2.0, 0.0}


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    ("rewards", "tokens", "want"),
    [
        ((1.0, 1.0, 1.0), None, "ties"),
        ((0.0, -0.0), None, "ties"),
        ((1.0, None, 1.0), None, "ties"),
        ((1.0, 0.0), [(7,), (7,)], "identical"),
        ((None, None), None, "unrated"),
        ((1.0, None, math.nan), None, "unrated"),
        ((), None, "unrated"),
    ],
)
def test_groups_without_a_pair_are_counted_by_reason(
    rewards: tuple[float | None, ...], tokens: list[tuple[int, ...]] | None, want: str, pairing: str
):
    made = pair(group("p", rewards, tokens), pairing=pairing)
    counts = {"ties": made.ties, "identical": made.identical, "unrated": made.unrated}
    assert made.pairs == ()
    assert counts == {"ties": 0, "identical": 0, "unrated": 0} | {want: 1}


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    ("rewards", "want"),
    [
        ((1.0, 1.0), "all_right"),
        ((2.0, None, 2.0), "all_right"),
        ((0.0, -0.0), "all_wrong"),
        ((-1.0, -1.0, math.nan), "all_wrong"),
        ((0.5, 0.5), "other_ties"),
        ((1.0, 1.25), "other_ties"),
        ((0.0, 1.0), "paired_prompts"),
        ((1.0, None), "unrated"),
    ],
)
@pytest.mark.parametrize("method", [{}, SPPO], ids=["rewards", "win rates"])
def test_every_prompt_is_counted_once_by_what_became_of_it(
    rewards: tuple[float | None, ...], want: str, pairing: str, method: dict[str, Any]
):
    window = [group("p", rewards)]
    figures = window_figures(window, pair(*window, pairing=pairing, minMargin=0.3 if not method else 0.2, **method))
    outcomes = ("paired_prompts", "all_right", "all_wrong", "other_ties", "identical", "unrated")
    assert {name: figures[name] for name in outcomes} == dict.fromkeys(outcomes, 0) | {want: 1}
    assert figures["ties"] == figures["all_right"] + figures["all_wrong"] + figures["other_ties"]


def test_where_a_model_gives_the_rewards_ties_are_neither_right_nor_wrong():
    window = [group("a", (1.0, 1.0)), group("b", (0.0, 0.0))]
    figures = window_figures(window, pair(*window), by_rule=False)
    assert (figures["ties"], figures["other_ties"]) == (2, 2)
    assert figures.keys().isdisjoint({"all_right", "all_wrong"})


def test_pairs_keep_the_order_of_the_groups():
    pairing = pair(group("a", (0.0, 1.0)), group("b", (1.0, 1.0)), group("c", (2.0, 1.0)))
    assert [made.prompt_id for made in pairing.pairs] == ["a", "c"]
    assert pairing.ties == 1


def test_all_pairs_are_every_two_samples_of_different_rewards():
    pairing = pair(group("p", (0.0, 1.0, None, 0.5, 1.0)), pairing="allPairs")
    assert indices(pairing) == [(1, 3), (1, 0), (4, 3), (4, 0), (3, 0)]


def test_all_pairs_leave_out_equal_tokens_and_keep_the_others():
    pairing = pair(group("p", (1.0, 0.0, 0.0), [(7,), (7,), (8,)]), pairing="allPairs")
    assert indices(pairing) == [(7, 8)]
    assert pairing.identical == 0


@pytest.mark.parametrize(
    ("pairing", "min_margin", "want"),
    [
        pytest.param("bestVsWorst", 1.0, [(2, 0)], id="a difference of just the margin is enough"),
        pytest.param("bestVsWorst", 1.01, [], id="too close"),
        pytest.param("bestVsRandom", 0.7, [(2, 0)], id="only one is far enough to be drawn"),
        pytest.param("allPairs", 0.5, [(2, 1), (2, 0)], id="some are too close"),
        pytest.param("allPairs", 1.01, [], id="all are too close"),
    ],
)
def test_rewards_closer_than_min_margin_make_no_pair(pairing: str, min_margin: float, want: list[tuple[int, int]]):
    made = pair(group("p", (0.0, 0.375, 1.0)), pairing=pairing, minMargin=min_margin)
    assert indices(made) == want
    assert made.ties == (not want)


def test_random_opponents_of_the_best_differ_by_prompt_and_seed_and_nothing_else():
    window = [group(f"prompt-{number}", (0.0, 1.0, 3.0, 2.0)) for number in range(64)]

    drawn = indices(pair(*window, pairing="bestVsRandom"))

    assert {chosen for chosen, _ in drawn} == {2}
    # Of 64 draws from three, each is expected 21 times, give or take 4.
    assert all(count > 8 for count in Counter(rejected for _, rejected in drawn).values())
    assert {rejected for _, rejected in drawn} == {0, 1, 3}
    assert indices(pair(*window[::-1], pairing="bestVsRandom")) == drawn[::-1]
    assert indices(pair(*window, pairing="bestVsRandom", seed=1)) != drawn


def test_all_pairs_of_a_window_are_divided_evenly_among_its_steps():
    window = [group("a", (0.0, 1.0, 2.0, 3.0)), group("b", (1.0, 1.0)), group("c", (2.0, 1.0, 1.0)), group("d", (None, 0.0))]

    pairing = pair(*window, pairing="allPairs")
    figures = window_figures(window, pairing)
    steps = divide(pairing.pairs, 3)

    assert {name: figures[name] for name in ("pairs", "ties", "identical", "unrated", "dropped_samples", "samples")} == {
        "pairs": 8.0,
        "ties": 1.0,
        "identical": 0.0,
        "unrated": 1.0,
        "dropped_samples": 1.0,
        "samples": 11.0,
    }
    assert [len(step) for step in steps] == [3, 3, 2]
    assert [made for step in steps for made in step] == list(pairing.pairs)


rewards_of_a_group = st.lists(st.none() | st.floats() | st.sampled_from([0.0, 0.5, 1.0]), max_size=6)

LOGISTIC_OF_1, LOGISTIC_OF_2 = 0.7310585786300049, 0.8807970779778823


def test_sppo_pairs_the_most_frequent_winner_with_the_most_frequent_loser_and_keeps_their_win_rates():
    (made,) = pair(group("p", (1.0, 2.0, None, 0.0)), **SPPO).pairs

    assert (made.chosen, made.rejected) == ((1,), (3,))
    # Against itself, 1 and 0; against itself, 2 and 1.
    assert made.chosen_reward == pytest.approx((0.5 + LOGISTIC_OF_1 + LOGISTIC_OF_2) / 3, rel=1e-12)
    assert made.rejected_reward == pytest.approx((0.5 + (1 - LOGISTIC_OF_2) + (1 - LOGISTIC_OF_1)) / 3, rel=1e-12)


def test_win_rates_need_not_count_a_draw_with_oneself():
    (made,) = pair(group("p", (1.0, 2.0, 0.0)), **SPPO, sppo={"includeSelf": False}).pairs

    assert made.chosen_reward == pytest.approx((LOGISTIC_OF_1 + LOGISTIC_OF_2) / 2, rel=1e-12)
    assert made.rejected_reward == pytest.approx(1 - made.chosen_reward, rel=1e-12)


def test_the_winner_of_five_certain_comparisons_has_a_rate_of_nine_tenths_as_with_the_authors():
    (made,) = pair(group("p", (0.0, 1e300, -1e300, 1.0, 0.0)), **SPPO).pairs

    assert (made.chosen_reward, made.rejected_reward) == pytest.approx((0.9, 0.1), rel=1e-12)


@pytest.mark.parametrize(("include_self", "want"), [(True, (5 / 6, 0.25)), (False, (0.9, 0.2))])
def test_win_rates_of_a_judge_are_taken_as_they_are(include_self: bool, want: tuple[float, float]):
    method = Method(name="sppo", loss="sppo", sppo=Sppo(include_self=include_self))
    # Of six answers, each with five opponents and, with itself, a draw.
    rates = (0.9, 0.6, 0.5, 0.4, 0.4, 0.2)
    (made,) = pair_groups([group("p", rates)], method, seed=0, are_win_rates=True).pairs
    assert (made.chosen_reward, made.rejected_reward) == pytest.approx(want)


def test_the_margin_of_sppo_is_one_of_win_rates():
    rewards = (0.0, 1.0)  # win rates ½ ± ½ (σ(1) - ½), 0.231 apart
    assert len(pair(group("p", rewards), **SPPO, minMargin=0.23).pairs) == 1
    assert pair(group("p", rewards), **SPPO, minMargin=0.24).ties == 1


@given(rewards_of_a_group, st.sampled_from(PAIRINGS), st.booleans())
def test_win_rates_keep_the_order_of_rewards_and_stay_probabilities(
    rewards: list[float | None], pairing: str, include_self: bool
):
    by_reward = pair(group("p", rewards), pairing="allPairs")
    by_rate = pair(group("p", rewards), pairing=pairing, sppo={"includeSelf": include_self}, **SPPO)

    # Rewards that differ by less than a float can say of a probability are a tie.
    assert {(made.chosen, made.rejected) for made in by_rate.pairs} <= {(made.chosen, made.rejected) for made in by_reward.pairs}
    for made in by_rate.pairs:
        assert 0 <= made.rejected_reward < made.chosen_reward <= 1


ADVANTAGE = {"name": "sppo", "loss": "sppoAdvantage"}


def advantages(pairing: Pairing) -> dict[tuple[int, ...], float]:
    """By the tokens of the answers."""
    both = [((made.chosen, made.chosen_reward), (made.rejected, made.rejected_reward)) for made in pairing.pairs]
    return {tokens: reward for couple in both for tokens, reward in couple if tokens}


def test_advantages_couple_the_best_with_the_worst_and_leave_the_middle_alone():
    made = pair(group("p", (0.0, 3.0, None, 1.0, 2.0, 9.0)), **ADVANTAGE)

    assert [(couple.chosen, couple.rejected) for couple in made.pairs] == [((5,), (0,)), ((1,), (3,)), ((), (4,))]
    soft_mean = math.log(sum(math.exp(reward) for reward in (0.0, 3.0, 1.0, 2.0, 9.0)) / 5)
    want = {(0,): -soft_mean, (1,): 3 - soft_mean, (3,): 1 - soft_mean, (4,): 2 - soft_mean, (5,): 9 - soft_mean}
    assert advantages(made) == pytest.approx(want, rel=1e-12)
    assert made.pairs[2].chosen_reward == 0.0
    assert made.dropped_samples == 1


def test_an_answer_in_the_middle_is_chosen_when_it_is_no_worse_than_what_it_is_measured_against():
    made = pair(group("p", (0.0, 1.0, 1.0)), **ADVANTAGE, sppoAdvantage={"kappa": 0.0})

    assert [(couple.chosen, couple.rejected) for couple in made.pairs] == [((1,), (0,)), ((2,), ())]
    assert made.pairs[1].rejected_reward == 0.0


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        pytest.param({"kappa": 0.0}, [1.0, -1.0, 0.5, -0.5], id="their mean"),
        pytest.param({"kappa": 0.0, "advantage": "batch"}, [2.5, 0.5, -1.0, -2.0], id="the mean of the window"),
        pytest.param({"kappa": 1000.0}, [0.0, -2.0, 0.0, -1.0], id="the best of the prompt"),
        pytest.param({"kappa": 1000.0, "advantage": "batch"}, [0.0, -2.0, -3.5, -4.5], id="the best of the window"),
    ],
)
def test_kappa_and_advantage_say_what_a_reward_is_measured_against(settings: dict[str, Any], want: list[float]):
    window = [group("a", (4.5, 2.5), [(1,), (2,)]), group("b", (1.0, 0.0), [(3,), (4,)])]

    got = advantages(pair(*window, **ADVANTAGE, sppoAdvantage=settings))

    # The mean of n exponentials of which one counts is a log n below it.
    assert [got[(token,)] for token in (1, 2, 3, 4)] == pytest.approx(want, abs=2e-3)


def test_with_advantages_answers_without_rewards_or_tokens_are_left_out_and_equal_ones_are_not():
    made = pair(group("a", (1.0, 1.0), [(7,), (7,)]), group("b", (None, 2.0), [(8,), ()]), **ADVANTAGE)

    assert [(couple.prompt_id, couple.chosen, couple.rejected) for couple in made.pairs] == [("a", (7,), (7,))]
    assert (made.ties, made.identical, made.unrated, made.dropped_samples) == (1, 0, 1, 2)


def test_with_advantages_equal_answers_count_as_ties_where_the_prompts_own_are_the_measure():
    window = [group("a", (1.0, 1.0)), group("b", (0.0, 0.0)), group("c", (0.5, 0.5)), group("d", (0.0, 1.0)), group("e", (1.0,))]
    by_prompt, by_window = (pair(*window, **ADVANTAGE, sppoAdvantage={"advantage": each}) for each in ("prompt", "batch"))
    assert (by_prompt.ties, by_prompt.all_right, by_prompt.all_wrong) == (3, 1, 1)
    assert (by_window.ties, by_window.all_right, by_window.all_wrong) == (0, 0, 0)
    assert len(by_prompt.pairs) == len(by_window.pairs) == 5


GRPO = {"name": "grpo", "loss": "grpo"}


def test_grpo_takes_every_answer_by_its_reward_and_leaves_prompts_of_equal_rewards_out():
    made = pair(
        group("a", (1.0, 0.0, None, 0.0, 1.0)),
        group("b", (1.0, 1.0)),
        group("c", (None, 2.0)),
        group("d", (2.0, 1.0, 0.0), [(7,), (7,), (7,)]),
        **GRPO,
        grpo={"scaleRewards": "none"},
    )

    assert [(couple.prompt_id, couple.chosen, couple.rejected) for couple in made.pairs] == [
        ("a", (0,), (3,)),
        ("a", (4,), (1,)),
        ("d", (7,), (7,)),
        ("d", (7,), ()),
    ]
    assert [(couple.chosen_reward, couple.rejected_reward) for couple in made.pairs] == [(0.5, -0.5)] * 2 + [(1.0, -1.0), (0, 0)]
    assert (made.ties, made.identical, made.unrated, made.dropped_samples) == (1, 0, 1, 2)


def test_log_probs_by_token_go_with_their_answers():
    (sampled,) = [group("a", (0.0, 2.0, 1.0), [(1, 2), (3,), (4,)])]
    logprobs = [(-1.0, -2.0), (-3.0,), (-4.0,)]
    samples = [each.model_copy(update={"token_logprobs": of}) for each, of in zip(sampled.samples, logprobs, strict=True)]
    told = replace(sampled, samples=tuple(samples))

    best, alone = (couple.sampled_by_token for couple in pair(told, **GRPO).pairs)

    assert best == ByToken((-3.0,), (-1.0, -2.0))
    assert alone == ByToken((-4.0,), ())
    assert [couple.sampled_by_token for couple in pair(told).pairs] == [best]
    assert [couple.sampled_by_token for couple in pair(sampled).pairs] == [None]


moderate_rewards = st.lists(st.none() | st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, math.nan, math.inf]), max_size=7)


@given(
    st.data(),
    st.lists(moderate_rewards, max_size=6),
    st.sampled_from(["prompt", "batch"]),
    st.sampled_from([0.0, 0.5, 1.0, 30.0]),
)
def test_with_advantages_every_answer_with_a_reward_is_trained_on_once_and_beside_answers_of_its_prompt(
    data: st.DataObject, rewards: list[list[float | None]], advantage: str, kappa: float
):
    window = [group(f"p{number}", each, [(number, index) for index in range(len(each))]) for number, each in enumerate(rewards)]
    settings = {**ADVANTAGE, "sppoAdvantage": {"advantage": advantage, "kappa": kappa}}
    made = pair(*window, **settings)

    finite = {
        (number, index): reward
        for number, each in enumerate(rewards)
        for index, reward in enumerate(each)
        if reward is not None and math.isfinite(reward)
    }
    answers = [tokens for couple in made.pairs for tokens in (couple.chosen, couple.rejected) if tokens]
    assert sorted(answers) == sorted(finite)
    assert made.dropped_samples == sum(map(len, rewards)) - len(finite)
    assert len({couple.prompt_id for couple in made.pairs}) + made.unrated == len(window)
    got = advantages(made)
    for couple in made.pairs:
        assert {tokens[0] for tokens in (couple.chosen, couple.rejected) if tokens} == {int(couple.prompt_id[1:])}
        assert couple.chosen_reward >= couple.rejected_reward
        assert all(map(math.isfinite, (couple.chosen_reward, couple.rejected_reward)))
    for one, other in combinations(finite, 2):
        if advantage == "batch" or one[0] == other[0]:
            assert got[one] - got[other] == pytest.approx(finite[one] - finite[other], rel=1e-9, abs=1e-6)

    orders = [data.draw(st.permutations(range(len(each)))) for each in rewards]
    permuted = [
        group(f"p{number}", [rewards[number][index] for index in order], [(number, index) for index in order])
        for number, order in enumerate(orders)
    ]
    assert advantages(pair(*permuted, **settings)) == pytest.approx(got, rel=1e-9, abs=1e-6)


# --- against an answer of version 0 ---------------------------------------------------------------------------------------


def pair_based(rewards: Sequence[float | None], base: Sequence[float | None], **method: Any) -> Pairing:
    """A group's pairs against an answer of version 0, which is the token 9; without a base reward there is no such answer."""
    groups = [group("p", rewards)], [group("p", base, [(9,)] * len(base))]
    return pair_with_base(*groups, Method.model_validate({"pairing": "bestVsBase"} | method))


@pytest.mark.parametrize(
    ("rewards", "base", "method", "want"),
    [
        pytest.param((0.0, 1.0, 1.0), (0.5,), {}, [(1, 9)], id="the best, the first among equals"),
        pytest.param((0.9,), (0.5,), {}, [(0, 9)], id="one sample will do"),
        pytest.param((None, 0.6, math.inf), (0.5,), {}, [(1, 9)], id="what has no reward is not the best"),
        pytest.param((0.0, 1.0), (0.5,), {"minMargin": 0.5}, [(1, 9)], id="as far away as minMargin"),
    ],
)
def test_best_sample_is_chosen_over_the_one_of_version_0(
    rewards: Sequence[float | None], base: Sequence[float | None], method: dict[str, Any], want: list[tuple[int, int]]
):
    made = pair_based(rewards, base, **method)
    assert indices(made) == want
    assert [(each.chosen_reward, each.rejected_reward) for each in made.pairs] == [(rewards[want[0][0]], base[0])]
    assert (made.ties, made.identical, made.unrated) == (0, 0, 0)


@pytest.mark.parametrize(
    ("rewards", "base", "method", "want"),
    [
        pytest.param((0.0, 0.5), (0.5,), {}, "ties", id="equal"),
        pytest.param((0.0, 0.4), (0.5,), {}, "ties", id="worse than version 0"),
        pytest.param((0.0, 0.9), (0.5,), {"minMargin": 0.5}, "ties", id="too near"),
        pytest.param((0.0, 1.0), (), {}, "unrated", id="no answer of version 0"),
        pytest.param((0.0, 1.0), (None,), {}, "unrated", id="one without a reward"),
        pytest.param((math.nan,), (0.0,), {}, "unrated", id="no sample with a reward"),
    ],
)
def test_prompts_without_a_better_sample_than_version_0s_are_counted_by_reason(
    rewards: Sequence[float | None], base: Sequence[float | None], method: dict[str, Any], want: str
):
    made = pair_based(rewards, base, **method)
    counts = {"ties": made.ties, "identical": made.identical, "unrated": made.unrated}
    assert made.pairs == ()
    assert counts == {"ties": 0, "identical": 0, "unrated": 0} | {want: 1}


def test_same_tokens_as_version_0s_make_no_pair():
    groups = [group("p", (1.0,), [(9,)])], [group("p", (0.0,), [(9,)])]
    made = pair_with_base(*groups, Method(pairing="bestVsBase"))
    assert (made.pairs, made.identical) == ((), 1)


@given(st.lists(st.tuples(rewards_of_a_group, st.lists(st.none() | st.floats(), max_size=1)), max_size=6))
def test_pairs_against_version_0_are_of_one_prompt_with_finite_rewards_and_every_prompt_is_counted_once(
    window: list[tuple[list[float | None], list[float | None]]],
):
    groups = [group(f"p{number}", own, [(number, index) for index in range(len(own))]) for number, (own, _) in enumerate(window)]
    base = [group(f"p{number}", theirs, [(number, 99)] * len(theirs)) for number, (_, theirs) in enumerate(window)]
    made = pair_with_base(groups, base, Method(pairing="bestVsBase"))
    assert len(made.pairs) + made.ties + made.identical + made.unrated == len(window)
    for each in made.pairs:
        number = int(each.prompt_id[1:])
        own = [reward for reward in window[number][0] if reward is not None and math.isfinite(reward)]
        assert (each.chosen[0], each.rejected) == (number, (number, 99))
        assert each.chosen_reward == max(own)
        assert math.isfinite(each.rejected_reward)
        assert each.chosen_reward > each.rejected_reward


TRUTH = (50, 51, 3)


def said(text: str, tokens: tuple[int, ...], *, cut: bool = False) -> Sample:
    return Sample(tokens=tokens, text=text, finish_reason="length" if cut else "stop")


def spin(*groups: ScoredGroup, truth: Sample | None = None, **method: Any) -> Pairing:
    """The pairs of groups whose true answer is always the same."""
    return pair_with_truths(groups, Method.model_validate({"name": "spin"} | method), lambda answer: truth or said(answer, TRUTH))


def asked(name: str, *answers: tuple[str, tuple[int, ...]], truth: str | None = "forty") -> ScoredGroup:
    """A prompt with a true answer, and what the model says: text and tokens."""
    samples = tuple(Sample(tokens=tokens, text=text, finish_reason="stop") for text, tokens in answers)
    return ScoredGroup(PromptRecord(name, (100, 101), "question", truth), samples, (None,) * len(samples))


def test_spin_prefers_the_true_answer_to_each_own_one():
    groups = [asked("a", ("fifty", (1, 3)), ("sixty", (2, 3))), asked("b", ("fifty", (1, 3)))]

    made = spin(*groups, truth=said("forty", (5, 3)))

    assert [(pair.prompt_id, pair.prompt, pair.chosen, pair.rejected) for pair in made.pairs] == [
        ("a", (100, 101), (5, 3), (1, 3)),
        ("a", (100, 101), (5, 3), (2, 3)),
        ("b", (100, 101), (5, 3), (1, 3)),
    ]
    assert {(pair.chosen_reward, pair.rejected_reward) for pair in made.pairs} == {(1.0, 0.0)}


@pytest.mark.parametrize(
    ("answers", "want"),
    [
        pytest.param([("forty", (7, 3))], "identical", id="same text in other tokens"),
        pytest.param([(" forty\n", (7, 8, 3))], "identical", id="same text but for spaces around it"),
        pytest.param([("other text", TRUTH)], "identical", id="same tokens"),
        pytest.param([], "unrated", id="no answer at all"),
    ],
)
def test_spin_makes_no_pair_of_the_true_answer_itself(answers: list[tuple[str, tuple[int, ...]]], want: str):
    made = spin(asked("p", *answers))

    assert made.pairs == ()
    assert {"ties": made.ties, "identical": made.identical, "unrated": made.unrated} == {
        "ties": 0,
        "identical": 0,
        "unrated": 0,
    } | {want: 1}


def test_spin_keeps_the_wrong_answers_beside_a_right_one():
    made = spin(asked("p", ("forty", TRUTH), ("fifty", (1, 3))))

    assert [pair.rejected for pair in made.pairs] == [(1, 3)]
    assert made.identical == 0


def test_spin_refuses_a_prompt_without_a_true_answer():
    with pytest.raises(ValueError, match="prompt 'p' has no true answer"):
        spin(asked("p", ("fifty", (1, 3)), truth=None))


words = st.sampled_from(["forty", "fifty", "sixty", " forty "])
sayings = st.lists(st.tuples(words, st.lists(st.integers(0, 3), max_size=3).map(tuple)), max_size=5)


@given(st.lists(st.tuples(words.map(str.strip), sayings), max_size=6))
def test_spin_never_crosses_prompts_and_never_rejects_the_truth(window: list[tuple[str, list[tuple[str, tuple[int, ...]]]]]):
    groups = {
        f"prompt-{number}": asked(f"prompt-{number}", *answers, truth=truth) for number, (truth, answers) in enumerate(window)
    }

    def encode(answer: str) -> tuple[int, ...]:
        return ({"forty": 0, "fifty": 1, "sixty": 2}[answer], 3)

    made = pair_with_truths(list(groups.values()), Method(name="spin"), lambda answer: said(answer, encode(answer)))

    for pair in made.pairs:
        source = groups[pair.prompt_id]
        assert source.prompt.answer is not None
        assert pair.chosen == encode(source.prompt.answer) != pair.rejected
        texts = [sample.text.strip() for sample in source.samples if sample.tokens == pair.rejected]
        assert any(text != source.prompt.answer for text in texts)
        assert pair.chosen_reward > pair.rejected_reward
    paired = {pair.prompt_id for pair in made.pairs}
    assert len(paired) + made.identical + made.unrated == len(window)


# --- answers that were cut off --------------------------------------------------------------------------------------


def cut(scored: ScoredGroup, *indices: int) -> ScoredGroup:
    """The group with these samples cut off at maxTokens."""
    samples = tuple(
        sample.model_copy(update={"finish_reason": "length"}) if index in indices else sample
        for index, sample in enumerate(scored.samples)
    )
    return replace(scored, samples=samples)


@pytest.mark.parametrize(
    ("method", "want", "rewards", "dropped"),
    [
        pytest.param({}, (0, 2), (1.0, 0.0), 0, id="as they are"),
        # Rewards of 0, 0.5 and 0
        pytest.param({"truncated": "penalise"}, (1, 0), (0.5, 0.0), 0, id="penalised by 1"),
        # Rewards of 0.75, 0.5 and 0
        pytest.param({"truncated": "penalise", "truncatedPenalty": 0.25}, (0, 2), (0.75, 0.0), 0, id="penalised by less"),
        # Rewards of -2, 0.5 and 0
        pytest.param({"truncated": "penalise", "truncatedPenalty": 3}, (1, 0), (0.5, -2.0), 0, id="penalised by more"),
        pytest.param({"truncated": "drop"}, (1, 2), (0.5, 0.0), 1, id="dropped"),
    ],
)
def test_what_becomes_of_an_answer_that_was_cut_off(
    method: dict[str, Any], want: tuple[int, int], rewards: tuple[float, float], dropped: int
):
    made = pair(cut(group("p", (1.0, 0.5, 0.0)), 0), **method)

    assert indices(made) == [want]
    assert (made.pairs[0].chosen_reward, made.pairs[0].rejected_reward) == rewards
    assert made.dropped_samples == dropped


def test_a_prompt_with_one_whole_answer_is_unrated_where_the_others_are_dropped():
    made = pair(cut(group("p", (1.0, 0.5, 0.0)), 0, 2), truncated="drop")

    assert (made.pairs, made.unrated, made.ties, made.dropped_samples) == ((), 1, 0, 2)


def test_of_a_win_rate_no_more_is_taken_than_there_is():
    rated = cut(group("p", (0.75, 0.5, 0.25)), 0, 2)

    (made,) = pair_groups([rated], Method(truncated="penalise", truncated_penalty=0.5), seed=0, are_win_rates=True).pairs

    assert (made.chosen, made.rejected) == ((1,), (2,))
    assert (made.chosen_reward, made.rejected_reward) == (0.5, 0.0)


def test_sppo_takes_win_rates_of_what_is_left_of_the_rewards():
    whole = pair(group("p", (0.0, 1.0)), name="sppo", loss="sppo")
    penalised = pair(cut(group("p", (2.0, 1.0)), 0), name="sppo", loss="sppo", truncated="penalise", truncatedPenalty=2)

    assert penalised == whole


def test_advantages_leave_out_answers_that_are_dropped():
    advantages = {"name": "sppo", "loss": "sppoAdvantage", "truncated": "drop"}

    made = pair(cut(group("p", (5.0, 1.0, 0.0)), 0), **advantages)

    assert indices(made) == [(1, 2)]
    assert made.pairs == pair(cut(group("p", (1.0, 1.0, 0.0)), 0), **advantages).pairs


def test_base_answers_that_were_cut_off_are_dropped_too():
    groups, base = [group("p", (1.0,)), group("q", (1.0,))], [cut(group("p", (0.0,), [(9,)]), 0), group("q", (0.0,), [(9,)])]

    made = pair_with_base(groups, base, Method(pairing="bestVsBase", truncated="drop"))

    assert [each.prompt_id for each in made.pairs] == ["q"]
    assert (made.unrated, made.dropped_samples) == (1, 1)


def test_spin_rejects_own_answers_that_were_cut_off_unless_they_are_dropped():
    groups = [cut(asked("a", ("fifty", (1, 2)), ("sixty", (2, 3))), 0), cut(asked("b", ("fifty", (1, 2))), 0)]

    as_they_are, dropped = spin(*groups), spin(*groups, truncated="drop")

    assert [each.rejected for each in as_they_are.pairs] == [(1, 2), (2, 3), (1, 2)]
    assert [each.rejected for each in dropped.pairs] == [(2, 3)]
    assert (dropped.unrated, dropped.identical, dropped.dropped_samples) == (1, 0, 2)


def test_spin_counts_true_answers_that_were_cut_off_and_drops_them_with_the_others():
    groups = [asked("a", ("fifty", (1, 3))), asked("b", ("fifty", (1, 3)), ("sixty", (2, 3)))]
    truth = said("forty", TRUTH[:2], cut=True)

    as_they_are, dropped = spin(*groups, truth=truth), spin(*groups, truth=truth, truncated="drop")

    assert [each.chosen for each in as_they_are.pairs] == [TRUTH[:2]] * 3
    assert (as_they_are.truncated_truths, dropped.truncated_truths) == (2, 2)
    assert (dropped.pairs, dropped.unrated, dropped.dropped_samples) == ((), 2, 3)


def test_every_pairing_is_described():
    page = (DOCS / "methods.md").read_text()
    assert [name for name in ALL_PAIRINGS if f"| `{name}` |" not in page] == []


windows = st.lists(rewards_of_a_group, max_size=8).map(
    lambda window: [
        group(f"prompt-{number}", rewards, [(number, index) for index in range(len(rewards))])
        for number, rewards in enumerate(window)
    ]
)
methods = st.fixed_dictionaries(
    {"pairing": st.sampled_from(PAIRINGS), "minMargin": st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1e6)}
)


@given(windows, methods)
def test_a_pair_never_crosses_prompts_and_prefers_the_higher_reward(window: list[ScoredGroup], method: dict[str, Any]):
    groups = {scored.prompt.id: scored for scored in window}
    for made in pair(*window, **method).pairs:
        source = groups[made.prompt_id]
        rewards = {sample.tokens: reward for sample, reward in zip(source.samples, source.rewards, strict=True)}
        assert rewards[made.chosen] == made.chosen_reward > made.rejected_reward == rewards[made.rejected]
        assert made.chosen_reward - made.rejected_reward >= method["minMargin"]
        assert made.prompt == source.prompt.tokens


@given(windows, methods)
def test_rewards_that_are_no_finite_numbers_are_never_in_a_pair_and_always_counted(
    window: list[ScoredGroup], method: dict[str, Any]
):
    pairing = pair(*window, **method)
    assert all(math.isfinite(made.chosen_reward) and math.isfinite(made.rejected_reward) for made in pairing.pairs)
    unusable = sum(reward is None or not math.isfinite(reward) for scored in window for reward in scored.rewards)
    assert pairing.dropped_samples == unusable


@given(windows, methods)
def test_every_group_is_accounted_for(window: list[ScoredGroup], method: dict[str, Any]):
    pairing = pair(*window, **method)
    paired = Counter(made.prompt_id for made in pairing.pairs)
    assert len(paired) + pairing.ties + pairing.identical + pairing.unrated == len(window)
    assert method["pairing"] == "allPairs" or set(paired.values()) <= {1}


@given(rewards_of_a_group, st.sampled_from([0.0, 0.5, 1.0]))
def test_all_pairs_miss_none(rewards: list[float | None], min_margin: float):
    finite = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    differences = [abs(one - other) for one, other in combinations(finite, 2)]
    want = sum(difference > 0 and difference >= min_margin for difference in differences)
    assert len(pair(group("p", rewards), pairing="allPairs", minMargin=min_margin).pairs) == want


@given(st.data(), rewards_of_a_group, methods)
def test_the_order_of_samples_matters_among_equals_only(data: st.DataObject, rewards: list[float | None], method: dict[str, Any]):
    order = data.draw(st.permutations(range(len(rewards))))
    straight = pair(group("p", rewards), **method)
    permuted = pair(group("p", [rewards[index] for index in order], [(index,) for index in order]), **method)

    def values(pairing: Pairing) -> list[tuple[float, float]]:
        return [(made.chosen_reward, made.rejected_reward) for made in pairing.pairs]

    assert values(straight) == values(permuted)
    if len(set(rewards)) == len(rewards):
        assert straight.pairs == permuted.pairs


def test_a_sample_without_a_reward_is_wrong_by_a_rule_and_does_not_count_by_a_model():
    window = [group("a", (-2.0, None)), group("b", (-4.0, -3.0))]
    assert mean_reward(window) == pytest.approx(-9 / 4)
    assert mean_reward(window, by_rule=False) == pytest.approx(-9 / 3)
    assert window_figures(window, pair(*window), by_rule=False)["reward/mean"] == pytest.approx(-3)
    assert mean_reward([group("a", (None, None))], by_rule=False) == 0


def test_a_prompt_whose_true_answer_cannot_be_read_does_not_count():
    window = [group("a", (1.0, None)), group("b", (None, None)), group("c", (None, None))]
    assert mean_reward(window, unusable={"b"}) == pytest.approx(1 / 4)
    assert window_figures(window, pair(*window), unusable={"b", "c"})["reward/mean"] == pytest.approx(1 / 2)
    assert window_figures(window, pair(*window), unusable={"b", "c"})["unrated"] == 3
    assert mean_reward(window[1:], unusable={"b", "c"}) == 0
