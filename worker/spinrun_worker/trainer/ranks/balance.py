"""How work is divided among the ranks."""

import heapq
from collections.abc import Sequence


def divide_evenly(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Divide items among ranks: the largest first, each goes to the rank with the least so far.

    The same on every rank: it depends on the arguments alone.

    Args:
        sizes: Size of each item, in any unit.
        num_ranks: Number of ranks.

    Returns:
        [rank] -> indices of items, the largest first; of equal items the one with the lower index first.
    """
    loads = [(0, rank) for rank in range(num_ranks)]
    of_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, rank = heapq.heappop(loads)
        of_rank[rank].append(index)
        heapq.heappush(loads, (load + sizes[index], rank))
    return of_rank
