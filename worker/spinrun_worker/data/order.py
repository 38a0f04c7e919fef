"""Random orders that are the same on every machine and in every version of every library."""

from hashlib import blake2b


def shuffled(count: int, *key: object) -> list[int]:
    """The numbers below `count` in an order that depends on the key alone.

    Sorted by a keyed hash rather than drawn from a generator, whose stream a library's next version may change.
    """
    prefix = ":".join(map(str, key))
    return sorted(range(count), key=lambda number: blake2b(f"{prefix}:{number}".encode(), digest_size=16).digest())
