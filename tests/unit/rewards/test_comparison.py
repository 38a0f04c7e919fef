"""Which answers meet, and what their win rates are."""

from collections import Counter

import pytest

from spinrun_worker.rewards.comparison import meetings, win_rates


@pytest.mark.parametrize("num_answers", [2, 3, 5, 8])
def test_all_meet_when_there_is_room(num_answers: int) -> None:
    all_of_them = num_answers * (num_answers - 1) // 2
    found = meetings(num_answers, max(all_of_them, num_answers))
    assert len({frozenset(two) for two in found}) == len(found) == all_of_them


@pytest.mark.parametrize(("num_answers", "most"), [(8, 27), (8, 8), (5, 9), (64, 200)])
def test_with_less_room_each_meets_the_same_number_of_different_ones(num_answers: int, most: int) -> None:
    found = meetings(num_answers, most)
    counts = Counter(answer for two in found for answer in two)
    assert len(found) <= most
    assert most - len(found) < num_answers
    assert len({frozenset(two) for two in found}) == len(found)
    assert all(one != other for one, other in found)
    assert set(counts.values()) == {2 * len(found) // num_answers}
    assert len(counts) == num_answers


@pytest.mark.parametrize("num_answers", [0, 1])
def test_nobody_to_meet(num_answers: int) -> None:
    assert meetings(num_answers, 28) == []
    assert win_rates(num_answers, {}) == (None,) * num_answers


def test_a_win_rate_is_the_mean_probability_to_win() -> None:
    outcomes = {(0, 1): 0.9, (0, 2): 0.5, (1, 2): 0.3}
    assert win_rates(3, outcomes) == pytest.approx((0.7, 0.2, 0.6))


@pytest.mark.parametrize(
    ("outcomes", "want"),
    [
        ({(0, 1): None}, (None, None)),
        # 2 leaves: it is in every unknown one, and the others have met all that are left.
        ({(0, 1): 1.0, (0, 2): None, (1, 2): None}, (1.0, 0.0, None)),
        # 2 leaves rather than 0, by its number.
        ({(0, 1): 0.8, (0, 2): None, (1, 2): 0.6}, (0.8, pytest.approx(0.2), None)),
        ({(0, 1): None, (0, 2): None, (1, 2): None}, (None, None, None)),
    ],
)
def test_an_unknown_outcome_costs_as_few_answers_as_can_be(
    outcomes: dict[tuple[int, int], float | None], want: tuple[float | None, ...]
) -> None:
    num_answers = 1 + max(answer for two in outcomes for answer in two)
    assert win_rates(num_answers, outcomes) == want
