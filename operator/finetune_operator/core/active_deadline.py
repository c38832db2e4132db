"""How long a job's attempts have run, all together: what `spec.activeDeadlineSeconds` is held against.

Two fields of status keep it: what has run, and since when something runs without a break. They change in one write, so
that no stretch is lost or counted twice, whenever the operator dies. As in a Kubernetes Job, a stretch begins when pods
are wanted; in a queue, suspended, or between attempts nothing is wanted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_api.status import Attempt, JobStatus
from finetune_operator.core.children import AttemptJob


def is_running(attempt: AttemptJob | None, record: Attempt) -> bool:
    """Whether the time of an attempt counts now."""
    return attempt is not None and attempt.started is not None and record.end_time is None


def used(status: JobStatus, attempt: AttemptJob, record: Attempt, now: datetime) -> float:
    """Seconds that attempts have run, the running one's included."""
    kept = status.model_copy(update=told(status, attempt, record, now))
    running = (now - kept.active_since).total_seconds() if kept.active_since else 0.0
    return (kept.active_seconds or 0) + running


def told(status: JobStatus, attempt: AttemptJob | None, record: Attempt, now: datetime) -> dict[str, Any]:
    """The fields of a status that keep the time, as far as they change."""
    if attempt is not None and attempt.started is not None and is_running(attempt, record):
        if status.active_since or attempt.suspended:
            # A queue that has asked for its pods lets them go on for a while: the stretch lasts, but none begins.
            return {}
        return {"active_since": _begun(status, attempt.started, record)}
    since = status.active_since or _unseen(status, attempt, record)
    if since is None:
        return {}
    stopped = record.end_time or (attempt.suspended_at if attempt else None) or now
    seconds = max(0, round((stopped - since).total_seconds()))
    return {"active_since": None, "active_seconds": (status.active_seconds or 0) + seconds}


def _begun(status: JobStatus, started: datetime, record: Attempt) -> datetime:
    """When a stretch begins: never before the end of one that is counted already."""
    ends = (it.end_time for it in status.attempts or [] if it.number == record.number and it.end_time)
    return max([started, *ends])


def _unseen(status: JobStatus, attempt: AttemptJob | None, record: Attempt) -> datetime | None:
    """When an attempt began of which only the end was seen, the first time that it is seen."""
    known = any(it.number == record.number and it.end_time for it in status.attempts or [])
    if known or record.end_time is None or attempt is None or attempt.suspended:
        return None
    return attempt.started
