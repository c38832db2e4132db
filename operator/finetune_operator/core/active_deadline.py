"""Measures how long the attempts of a job have been active in total, to compare with `spec.activeDeadlineSeconds`.

A Job's own `activeDeadlineSeconds` would restart with each attempt. Two status fields keep the time instead:
`activeSeconds`, the total of the closed intervals, and `activeSince`, the start of the open one. They change in one
write, so that no interval is lost or counted twice, whenever the operator dies. As for a Kubernetes Job, an interval
starts when the Job starts; no time is counted in a queue, while suspended, or between attempts.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.status import AttemptStatus, JobStatus
from finetune_operator.core.changes import StatusChanges, update_status
from finetune_operator.core.children import AttemptJob


def is_active(attempt_job: AttemptJob | None, attempt: AttemptStatus) -> bool:
    """Whether time is being counted now."""
    return attempt_job is not None and attempt_job.started_at is not None and attempt.end_time is None


def elapsed_seconds(status: JobStatus, attempt_job: AttemptJob, attempt: AttemptStatus, now: datetime) -> float:
    """Total active time of all attempts, including the open interval."""
    current = update_status(status, **active_time_fields(status, attempt_job, attempt, now))
    open_interval = (now - current.active_since).total_seconds() if current.active_since else 0.0
    return (current.active_seconds or 0) + open_interval


def active_time_fields(
    status: JobStatus, attempt_job: AttemptJob | None, attempt: AttemptStatus, now: datetime
) -> StatusChanges:
    """`active_since` and `active_seconds`, if they change."""
    if attempt_job is not None and attempt_job.started_at is not None and is_active(attempt_job, attempt):
        if status.active_since or attempt_job.suspended:
            # After a queue suspends a Job, its pods run on for a while: an open interval stays open, none starts.
            return {}
        return {"active_since": _interval_start(status, attempt_job.started_at, attempt)}
    start = status.active_since or _unobserved_start(status, attempt_job, attempt)
    if start is None:
        return {}
    end = attempt.end_time or (attempt_job.suspended_at if attempt_job else None) or now
    seconds = max(0, round((end - start).total_seconds()))
    return {"active_since": None, "active_seconds": (status.active_seconds or 0) + seconds}


def _interval_start(status: JobStatus, started_at: datetime, attempt: AttemptStatus) -> datetime:
    """When the open interval starts: never before the end of one that is already counted."""
    ends = (it.end_time for it in status.attempts or [] if it.number == attempt.number and it.end_time)
    return max([started_at, *ends])


def _unobserved_start(status: JobStatus, attempt_job: AttemptJob | None, attempt: AttemptStatus) -> datetime | None:
    """Start of an attempt that started and ended while no operator was watching; None once it is counted."""
    counted = any(it.number == attempt.number and it.end_time for it in status.attempts or [])
    if counted or attempt.end_time is None or attempt_job is None or attempt_job.suspended:
        return None
    return attempt_job.started_at
