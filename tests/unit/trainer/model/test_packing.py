import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.packing import pack, plan_step, unpack


def pair(prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Pair:
    return Pair("p", prompt, chosen, rejected, chosen_reward=1.0, rejected_reward=0.0)


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    world_size=st.integers(1, 9),
    limit=st.integers(16, 300),
)
def test_every_pair_is_planned_once_within_the_limit_and_ranks_stay_in_step(lengths: list[int], world_size: int, limit: int):
    plan = plan_step(lengths, world_size=world_size, tokens_per_micro_batch=limit)

    assert len(plan) == world_size
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    planned = [index for micro_batches in plan for micro_batch in micro_batches for index in micro_batch]
    assert sorted(planned) == list(range(len(lengths)))
    for micro_batches in plan:
        for micro_batch in micro_batches:
            assert len(micro_batch) <= 1 or sum(lengths[index] for index in micro_batch) <= limit
    assert plan == plan_step(lengths, world_size=world_size, tokens_per_micro_batch=limit)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60), world_size=st.integers(1, 9))
def test_ranks_differ_by_one_pair_at_most_in_tokens(lengths: list[int], world_size: int):
    plan = plan_step(lengths, world_size=world_size, tokens_per_micro_batch=10_000)

    loads = [sum(lengths[index] for micro_batch in rank for index in micro_batch) for rank in plan]
    assert max(loads) - min(loads) <= max(lengths)


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    world_size=st.integers(1, 9),
    limit=st.integers(16, 300),
)
def test_padded_pairs_all_count_as_the_longest_of_their_micro_batch(lengths: list[int], world_size: int, limit: int):
    plan = plan_step(lengths, world_size=world_size, tokens_per_micro_batch=limit, padded=True)

    planned = [index for micro_batches in plan for micro_batch in micro_batches for index in micro_batch]
    assert sorted(planned) == list(range(len(lengths)))
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    for micro_batch in (each for micro_batches in plan for each in micro_batches if len(each) > 1):
        assert len(micro_batch) * max(lengths[index] for index in micro_batch) <= limit


def test_pairs_share_as_few_micro_batches_as_fit():
    assert plan_step([40, 10, 30, 20], world_size=1, tokens_per_micro_batch=50) == [[(0, 1), (2, 3)]]


def test_a_pair_longer_than_the_limit_is_alone():
    assert plan_step([10, 999, 10], world_size=1, tokens_per_micro_batch=50) == [[(1,), (0, 2)]]


def test_ranks_without_pairs_get_empty_micro_batches():
    assert plan_step([60, 60], world_size=3, tokens_per_micro_batch=50) == [[(0,)], [(1,)], [()]]


def test_a_row_holds_each_prompt_once_and_the_rejected_answer_continues_it():
    micro = pack([pair((1, 2, 3), (4, 5), (6, 7, 8)), pair((9,), (10,), (11,))], [0, 1])

    assert micro.token_ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert micro.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1]
    assert micro.lengths_S.tolist() == [2, 3, 1, 1]
    assert micro.target_C.tolist() == [4, 5, 6, 7, 8, 10, 11]
    # The token before each target in its own sequence; the prompt's last for both first targets.
    assert micro.token_ids_T[micro.source_C].tolist() == [3, 4, 3, 6, 7, 9, 9]
    assert micro.pair_indices == (0, 1)


def test_a_row_is_taken_apart_into_sequences_of_prompt_and_answer():
    micro = pack([pair((1, 2, 3), (4, 5), (6, 7, 8)), pair((9,), (10,), ())], [0, 1])

    tokens_SL, places_C = unpack(micro.layout)

    ids_SL = micro.token_ids_T[tokens_SL]
    assert [row[:length] for row, length in zip(ids_SL.tolist(), (5, 6, 2, 1), strict=True)] == [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 6, 7, 8],
        [9, 10],
        [9],
    ]
    # The token before each target.
    assert ids_SL.flatten()[places_C].tolist() == [3, 4, 3, 6, 7, 9]


def test_an_empty_answer_takes_no_place():
    micro = pack([pair((1, 2), (), (3, 4)), pair((5,), (6,), ())], [0, 1])

    assert micro.lengths_S.tolist() == [0, 2, 1, 0]
    assert micro.target_C.tolist() == [3, 4, 6]
    assert micro.token_ids_T[micro.source_C].tolist() == [2, 3, 5]


def test_tokens_beyond_the_shorter_answer_have_their_weight():
    longer_chosen, longer_rejected = pair((1,), (2, 3, 4), (5,)), pair((1,), (2,), (3, 4))

    weights = pack([longer_chosen, longer_rejected], [0, 1], tail_weight=0.1).weight_C

    assert weights is not None
    assert weights.tolist() == [1, 0.1, 0.1, 1, 1, 1, 0.1]
    assert pack([longer_chosen], [0]).weight_C is None


def test_no_pairs_make_a_row_that_belongs_to_none():
    micro = pack([pair((1,), (2,), (3,))], [])

    assert micro.pair_indices == ()
    assert len(micro.token_ids_T) == 3


def test_a_pair_without_prompt_is_refused():
    with pytest.raises(ValueError, match="'p' has an empty prompt"):
        pack([pair((), (1,), (2,))], [0])


def test_the_noise_of_a_pair_is_its_own_wherever_it_is_packed():
    one, other = pair((1,), (2, 3), (4,)), pair((1,), (2, 3), (5,))

    together, alone = pack([one, other], [0, 1], top_k=4).noise_CK, pack([other], [0], top_k=4).noise_CK

    assert together is not None
    assert alone is not None
    assert together.shape == (6, 4)
    assert together[3:].equal(alone)
    assert not together[:3].equal(alone)
    assert pack([one], [0]).noise_CK is None
