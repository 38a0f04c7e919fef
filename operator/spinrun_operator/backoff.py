"""Pauses between tries: longer with each failure in a row, never quite the same, and short again after a while without one."""

import random
from dataclasses import dataclass

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0


@dataclass
class Backoff:
    """The pauses of one thing that is tried again and again."""

    healthy_seconds: float
    """A try that lasted so long had no failure."""
    failures: int = 0
    """In a row."""

    def pause(self, lasted: float, asked: float | None = None) -> float:
        """Seconds to wait after a try.

        Args:
            lasted: Seconds that the try lasted.
            asked: Seconds that the other side asks to wait for, if it does; not for ever.
        """
        self.failures = 1 if lasted >= self.healthy_seconds else self.failures + 1
        wanted = max(FIRST_SECONDS * 2 ** min(self.failures - 1, 20), asked or 0.0)
        # What failed together is not to come back together.
        return min(wanted, LONGEST_SECONDS) * random.uniform(0.5, 1.0)
