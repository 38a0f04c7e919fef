"""Dividing work among ranks."""

import heapq
from collections.abc import Sequence


def spread(sizes: Sequence[int], world_size: int) -> list[list[int]]:
    """The largest piece first, each goes to the rank that has the least so far. Depends on the arguments alone.

    Args:
        sizes: Size of each piece, in any unit. Of equal ones the earlier comes first.
        world_size: Number of ranks.

    Returns:
        [rank] -> indices of its pieces, the largest first.
    """
    loads = [(0, rank) for rank in range(world_size)]
    of_rank: list[list[int]] = [[] for _ in range(world_size)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        load, rank = heapq.heappop(loads)
        of_rank[rank].append(index)
        heapq.heappush(loads, (load + sizes[index], rank))
    return of_rank
