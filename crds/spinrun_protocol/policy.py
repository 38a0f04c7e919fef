"""What follows when a trainer has ended: by its exit code, and by what the run's failurePolicy says of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from spinrun_api.spec import FailureRule
from spinrun_protocol.exit_codes import ExitCode


class Action(Enum):
    """What follows the end of an attempt. Those that a rule of the failurePolicy can ask for have its words as their values."""

    COMPLETE = "Complete"
    """The run is complete."""
    FAIL = "Fail"
    """The run fails at once."""
    RESTART = "Restart"
    """Another attempt, which counts against backoffLimit."""
    RESTART_UNCOUNTED = "RestartUncounted"
    """Another attempt, which does not."""
    AWAIT_LEDGER = "AwaitLedger"
    """Another attempt, which does not count either, but not before the ledger's volume can be written to."""


@dataclass(frozen=True)
class Decision:
    """What follows, and who says so."""

    action: Action
    by_rule: bool = False
    """Whether a rule of the run's failurePolicy decided, not what is built in."""


_BUILT_IN: dict[int, Action] = {
    ExitCode.INVALID_CONFIGURATION: Action.FAIL,
    ExitCode.PREEMPTED: Action.RESTART_UNCOUNTED,
    ExitCode.LEDGER_UNAVAILABLE: Action.AWAIT_LEDGER,
}


def decide(exit_code: int, rules: Sequence[FailureRule], *, disrupted: bool = False, out_of_memory: bool = False) -> Decision:
    """What follows the end of an attempt. Whether backoffLimit allows a restart that counts is the caller's to see.

    Args:
        exit_code: The trainer's; 128 plus its number for a signal.
        rules: The run's failurePolicy. The first rule that names the exit code decides, before what is built in.
        disrupted: Somebody ended the trainer who had the right to: its exit code says nothing, unless it had just completed.
        out_of_memory: It was OOM-killed, a rank perhaps and not the process whose exit code is seen: only a rule knows better
            than that this is a failure.
    """
    if exit_code == ExitCode.COMPLETE:
        return Decision(Action.COMPLETE)
    if disrupted:
        return Decision(Action.RESTART_UNCOUNTED)
    for rule in rules:
        if exit_code in rule.exit_codes:
            return Decision(Action(rule.action), by_rule=True)
    if out_of_memory:
        return Decision(Action.RESTART)
    return Decision(_BUILT_IN.get(exit_code, Action.RESTART))
