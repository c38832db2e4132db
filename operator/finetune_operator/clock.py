"""How long a job's attempts have run, all together: what `spec.activeDeadlineSeconds` is held against.

Two fields of status keep it: what has run, and since when something runs without a break. They change in one write, so
that no stretch is lost or counted twice, whenever the operator dies. As in a Kubernetes Job, a stretch begins when pods
are wanted; in a queue, suspended, or between attempts nothing is wanted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_api.status import Attempt, JobStatus
from finetune_operator.children import AttemptJob


def is_running(attempt: AttemptJob | None, record: Attempt) -> bool:
    """Whether the time of an attempt counts now."""
    return attempt is not None and attempt.started is not None and record.end_time is None


def used(status: JobStatus, attempt: AttemptJob, now: datetime) -> float:
    """Seconds that attempts have run, the running one's included."""
    since = status.active_since or attempt.started or now
    return (status.active_seconds or 0) + (now - since).total_seconds()


def told(status: JobStatus, attempt: AttemptJob | None, record: Attempt, now: datetime) -> dict[str, Any]:
    """The fields of a status that keep the time, as far as they change."""
    if attempt is not None and is_running(attempt, record):
        return {} if status.active_since else {"active_since": attempt.started}
    since = status.active_since or _unseen(status, attempt, record)
    if since is None:
        return {}
    stopped = record.end_time or (attempt.suspended_at if attempt else None) or now
    seconds = max(0, round((stopped - since).total_seconds()))
    return {"active_since": None, "active_seconds": (status.active_seconds or 0) + seconds}


def _unseen(status: JobStatus, attempt: AttemptJob | None, record: Attempt) -> datetime | None:
    """When an attempt began of which only the end was seen, the first time that it is seen."""
    known = any(it.number == record.number and it.end_time for it in status.attempts or [])
    return None if known or record.end_time is None or attempt is None else attempt.started
