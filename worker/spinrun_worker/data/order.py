"""Random orders that are the same on every machine and in every version of every library."""

from hashlib import blake2b


def shuffled(count: int, *key: object) -> list[int]:
    """The numbers below `count`, in an order that depends on the key alone.

    They are sorted by a keyed hash rather than drawn from a generator, whose stream the next version of a library may change.

    Args:
        count: How many numbers.
        *key: What the order depends on.
    """
    prefix = ":".join(map(str, key))
    return sorted(range(count), key=lambda number: blake2b(f"{prefix}:{number}".encode(), digest_size=16).digest())
