import pytest

from spinrun_worker.trainer.ranks.balance import divide_evenly


@pytest.mark.parametrize(
    ("sizes", "num_ranks", "want"),
    [
        pytest.param([1, 5, 3, 4], 2, [[1, 0], [3, 2]], id="the largest first, to the rank with the least"),
        pytest.param([2, 2, 2], 2, [[0, 2], [1]], id="equal items in order, to the lowest rank"),
        pytest.param([7], 3, [[0], [], []], id="fewer items than ranks"),
        pytest.param([], 2, [[], []], id="no items"),
        pytest.param([3, 1, 2], 1, [[0, 2, 1]], id="one rank"),
    ],
)
def test_items_are_divided_evenly(sizes: list[int], num_ranks: int, want: list[list[int]]) -> None:
    assert divide_evenly(sizes, num_ranks) == want
