"""Dividing work among ranks."""

from spinrun_worker.trainer.ranks.spread import spread


def test_largest_piece_goes_first_and_each_to_the_rank_that_has_the_least() -> None:
    assert spread([1, 5, 3, 3, 2], 2) == [[1, 4], [2, 3, 0]]


def test_rank_may_be_left_without_a_piece() -> None:
    assert spread([7], 3) == [[0], [], []]
