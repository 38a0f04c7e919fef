"""Reasons of conditions and events. Programs compare with them: they are part of the API."""

from typing import Final

# Of the run's way through its life (Progressing, Ready, and the reasons of Suspended, Complete and Failed).
PENDING: Final = "Pending"
STARTING: Final = "Starting"
RUNNING: Final = "Running"
RESTARTING: Final = "Restarting"
SUSPENDING: Final = "Suspending"
SUSPENDED: Final = "Suspended"
NOT_SUSPENDED: Final = "NotSuspended"
RESUMED: Final = "Resumed"
WAITING_FOR_CLEANUP: Final = "WaitingForCleanup"
COMPLETED: Final = "Completed"
FAILED: Final = "Failed"

# Why a run failed for good.
INVALID_CONFIGURATION: Final = "InvalidConfiguration"
FAILURE_POLICY: Final = "FailurePolicy"
BACKOFF_LIMIT_EXCEEDED: Final = "BackoffLimitExceeded"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"

# Why an attempt ended.
TRAINER_FAILED: Final = "TrainerFailed"
TRAINER_OOM_KILLED: Final = "TrainerOOMKilled"
TRAINER_PREEMPTED: Final = "TrainerPreempted"
TRAINER_DISRUPTED: Final = "TrainerDisrupted"
TRAINER_LOST: Final = "TrainerLost"
PROGRESS_DEADLINE_EXCEEDED: Final = "ProgressDeadlineExceeded"
LEDGER_UNAVAILABLE: Final = "LedgerUnavailable"
LEDGER_AVAILABLE: Final = "LedgerAvailable"
TRAINER_STARTED: Final = "TrainerStarted"

# Why a run is degraded: something stands in its way, and it continues once that is gone.
AS_EXPECTED: Final = "AsExpected"
INVALID_SPEC: Final = "InvalidSpec"
INTERNAL_ERROR: Final = "InternalError"
CHILD_CONFLICT: Final = "ChildConflict"
CHILD_REFUSED: Final = "ChildRefused"
FORBIDDEN: Final = "Forbidden"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
CLAIM_LOST: Final = "ClaimLost"
CLAIM_PENDING: Final = "ClaimPending"
CLAIM_NOT_FOUND: Final = "ClaimNotFound"
PODS_REFUSED: Final = "PodsRefused"
POD_UNSCHEDULABLE: Final = "PodUnschedulable"
IMAGE_NOT_PULLED: Final = "ImageNotPulled"
CONFIG_MISSING: Final = "ConfigMissing"
VOLUME_NOT_MOUNTED: Final = "VolumeNotMounted"
CONTAINER_CRASHING: Final = "ContainerCrashing"
PREFERENCE_UNAVAILABLE: Final = "PreferenceUnavailable"

ATTEMPT_ENDS: Final = (
    COMPLETED,
    TRAINER_FAILED,
    TRAINER_OOM_KILLED,
    TRAINER_PREEMPTED,
    TRAINER_DISRUPTED,
    TRAINER_LOST,
    PROGRESS_DEADLINE_EXCEEDED,
    LEDGER_UNAVAILABLE,
    INVALID_CONFIGURATION,
    FAILURE_POLICY,
    BACKOFF_LIMIT_EXCEEDED,
    DEADLINE_EXCEEDED,
)
"""An Event with one of these tells that an attempt is over."""
