"""What to do when the trainer has ended."""

from collections.abc import Sequence
from enum import Enum

from spinrun_api.spec import FailureRule
from spinrun_protocol.exit_codes import ExitCode


class Action(Enum):
    """What follows the end of an attempt."""

    COMPLETE = "Complete"
    FAIL = "Fail"
    RESTART = "Restart"
    """A new attempt that counts against backoffLimit."""
    RESTART_UNCOUNTED = "RestartUncounted"
    STOP = "Stop"
    """The ledger cannot be written: the run stops as it is and can be resumed."""


BUILT_IN: dict[int, Action] = {
    ExitCode.COMPLETE: Action.COMPLETE,
    ExitCode.INVALID_CONFIGURATION: Action.FAIL,
    ExitCode.PREEMPTED: Action.RESTART_UNCOUNTED,
    ExitCode.LEDGER_UNAVAILABLE: Action.STOP,
}


def after(exit_code: int, rules: Sequence[FailureRule]) -> Action:
    """The first of the run's rules that names the exit code decides, then the built-in ones; other failures count."""
    for rule in rules:
        if exit_code in rule.exit_codes:
            return Action(rule.action)
    return BUILT_IN.get(exit_code, Action.RESTART)


def backoff_seconds(failures: int, *, first: float = 1.0, longest: float = 30.0) -> float:
    """Seconds to wait after a number of failures in a row, from 1: twice as long each time."""
    return min(longest, first * 2 ** (failures - 1))
