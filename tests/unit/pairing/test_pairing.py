import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.spec import Method
from spinrun_api.wire import Sample
from spinrun_worker.methods.pairing import Pairing, pair_groups
from spinrun_worker.records import PromptRecord, ScoredGroup


def group(name: str, rewards: Sequence[float | None], tokens: Sequence[tuple[int, ...]] | None = None) -> ScoredGroup:
    """A prompt whose sample number i is the token i, unless said otherwise."""
    tokens = tokens or [(index,) for index in range(len(rewards))]
    samples = tuple(Sample(tokens=ids, text="", finish_reason="stop") for ids in tokens)
    return ScoredGroup(PromptRecord(name, (100, 101), "question"), samples, tuple(rewards))


def pair(*groups: ScoredGroup) -> Pairing:
    return pair_groups(groups, Method())


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
    rewards: tuple[float | None, ...], tokens: list[tuple[int, ...]] | None, want: str
):
    pairing = pair(group("p", rewards, tokens))
    counts = {"ties": pairing.ties, "identical": pairing.identical, "unrated": pairing.unrated}
    assert pairing.pairs == ()
    assert counts == {"ties": 0, "identical": 0, "unrated": 0} | {want: 1}


def test_pairs_keep_the_order_of_the_groups():
    pairing = pair(group("a", (0.0, 1.0)), group("b", (1.0, 1.0)), group("c", (2.0, 1.0)))
    assert [made.prompt_id for made in pairing.pairs] == ["a", "c"]
    assert pairing.ties == 1


rewards_of_a_group = st.lists(st.none() | st.floats() | st.sampled_from([0.0, 1.0]), max_size=6)
windows = st.lists(rewards_of_a_group, max_size=8).map(
    lambda window: [
        group(f"prompt-{number}", rewards, [(number, index) for index in range(len(rewards))])
        for number, rewards in enumerate(window)
    ]
)


@given(windows)
def test_a_pair_never_crosses_prompts_and_prefers_the_higher_reward(window: list[ScoredGroup]):
    groups = {scored.prompt.id: scored for scored in window}
    for made in pair(*window).pairs:
        source = groups[made.prompt_id]
        rewards = {sample.tokens: reward for sample, reward in zip(source.samples, source.rewards, strict=True)}
        assert rewards[made.chosen] == made.chosen_reward > made.rejected_reward == rewards[made.rejected]
        assert made.prompt == source.prompt.tokens


@given(windows)
def test_rewards_that_are_no_finite_numbers_are_never_in_a_pair_and_always_counted(window: list[ScoredGroup]):
    pairing = pair(*window)
    assert all(math.isfinite(made.chosen_reward) and math.isfinite(made.rejected_reward) for made in pairing.pairs)
    unusable = sum(reward is None or not math.isfinite(reward) for scored in window for reward in scored.rewards)
    assert pairing.dropped_samples == unusable


@given(windows)
def test_every_group_is_accounted_for(window: list[ScoredGroup]):
    pairing = pair(*window)
    assert len(pairing.pairs) + pairing.ties + pairing.identical + pairing.unrated == len(window)


@given(st.data(), rewards_of_a_group)
def test_the_order_of_samples_matters_among_equals_only(data: st.DataObject, rewards: list[float | None]):
    order = data.draw(st.permutations(range(len(rewards))))
    straight = pair(group("p", rewards))
    permuted = pair(group("p", [rewards[index] for index in order], [(index,) for index in order]))

    def values(pairing: Pairing) -> list[tuple[float, float]]:
        return [(made.chosen_reward, made.rejected_reward) for made in pairing.pairs]

    assert values(straight) == values(permuted)
    if len(set(rewards)) == len(rewards):
        assert straight.pairs == permuted.pairs
