"""How long to wait before the trainer's next attempt; whether there is one, `spinrun_protocol.policy` decides."""


def backoff_seconds(failures: int, *, first: float = 1.0, longest: float = 30.0) -> float:
    """Seconds to wait after a number of failures in a row, from 1: twice as long each time."""
    return min(longest, first * 2 ** (failures - 1))
