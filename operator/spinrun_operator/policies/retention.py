"""Which Jobs of earlier attempts are kept, so that the logs of the last failure can be read."""

from typing import Any

from spinrun_kube import names
from spinrun_operator.observed import has_condition, is_deleted

Json = dict[str, Any]


def superseded_jobs(jobs: list[Json], attempt: int) -> list[Json]:
    """Jobs to delete: all but the current attempt's, and that of the attempt before when it failed on its own."""
    return [job for job in jobs if not is_deleted(job) and not _is_kept(job, attempt)]


def job_attempt(job: Json) -> int:
    """Attempt that the Job is; 0 when its label does not say, which makes it an old one."""
    text = job["metadata"].get("labels", {}).get(names.ATTEMPT_LABEL, "")
    return int(text) if text.isdecimal() else 0


def _is_kept(job: Json, attempt: int) -> bool:
    number = job_attempt(job)
    # A later attempt than ours is the work of another operator that knows more: not ours to delete.
    return number >= attempt or (number == attempt - 1 and has_condition(job, "Failed") is not None)
