"""Exit codes of the trainer: a contract between the worker and the operator's failure policy."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Why the trainer ended. Any other code is a retryable failure that counts against backoffLimit."""

    COMPLETE = 0
    FAILED = 1
    INVALID_CONFIGURATION = 2
    PREEMPTED = 3
    LEDGER_UNAVAILABLE = 4
