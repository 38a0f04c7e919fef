"""The operator's clock: the time of day, without the jumps that it makes when somebody sets it."""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from spinrun_kube import times

JUMP = timedelta(seconds=60)
"""What the time of day is off by when it was set, and not just kept right. Clocks are kept right a little at a time."""

logger = logging.getLogger(__name__)


def elapsed_seconds() -> float:
    """Seconds since some moment, those included for which the machine was asleep. Nobody can set them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SteadyClock:
    """The time of day, which moves as fast as time passes.

    Deadlines and the time to live of runs are counted from times of day that stand in their status. Were the clock set by a day
    meanwhile, they would be over at once, or a day too late. Such a jump is left out until the operator restarts.
    """

    def __init__(
        self, time_of_day: Callable[[], datetime] = times.utc_now, elapsed: Callable[[], float] = elapsed_seconds
    ) -> None:
        self._time_of_day = time_of_day
        self._elapsed = elapsed
        self._left_out = timedelta()
        self._seen = (time_of_day(), elapsed())

    def __call__(self) -> datetime:
        """The time."""
        seen, at = self._seen
        now, moment = self._time_of_day(), self._elapsed()
        jump = now - seen - timedelta(seconds=moment - at)
        if abs(jump) > JUMP:
            self._left_out += jump
            logger.warning(
                "the machine's clock was set by %+.0f s: deadlines and waits are counted as before, until the operator restarts",
                jump.total_seconds(),
            )
        self._seen = (now, moment)
        return now - self._left_out
