"""Changes to status, typed and validated.

`model_copy(update=...)` accepts any name and any value, so a misspelled field or a wrong type would only be noticed by
the API server, or by no one. Here mypy checks both, and pydantic checks the values again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict, TypeVar, Unpack

from finetune_api.status import (
    AttemptStatus,
    BestEvaluation,
    CheckpointStatus,
    Condition,
    JobStatus,
    Metric,
    ModuleStatus,
    OutputStatus,
    Progress,
    StatusModel,
)

StatusT = TypeVar("StatusT", bound=StatusModel)


class StatusChanges(TypedDict, total=False):
    """Fields of a JobStatus to set; None clears a field, a field that is left out keeps its value."""

    observed_generation: int
    conditions: list[Condition]
    attempt: int
    restarts: int
    start_time: datetime | None
    completion_time: datetime | None
    active_seconds: int
    active_since: datetime | None
    cleanup_time: datetime | None
    spec_hash: str
    progress: Progress
    metrics: list[Metric]
    best: BestEvaluation
    modules: list[ModuleStatus]
    checkpoint: CheckpointStatus | None
    output: OutputStatus
    attempts: list[AttemptStatus]


class ConditionChanges(TypedDict, total=False):
    """Fields of a Condition to set; a field that is left out keeps its value."""

    observed_generation: int


class ProgressChanges(TypedDict, total=False):
    """Fields of a Progress to set; a field that is left out keeps its value."""

    percentage: float
    summary: str | None


class AttemptChanges(TypedDict, total=False):
    """Fields of an AttemptStatus to set; None clears a field, a field that is left out keeps its value."""

    start_time: datetime | None
    end_time: datetime | None
    reason: str | None
    exit_code: int | None
    oom_killed: bool | None
    disruption: str | None
    message: str | None


def update_status(status: JobStatus, **changes: Unpack[StatusChanges]) -> JobStatus:
    """A copy of the status with these fields changed."""
    return _updated(status, changes)


def update_condition(condition: Condition, **changes: Unpack[ConditionChanges]) -> Condition:
    """A copy of the condition with these fields changed."""
    return _updated(condition, changes)


def update_progress(progress: Progress, **changes: Unpack[ProgressChanges]) -> Progress:
    """A copy of the progress with these fields changed."""
    return _updated(progress, changes)


def update_attempt(attempt: AttemptStatus, **changes: Unpack[AttemptChanges]) -> AttemptStatus:
    """A copy of the attempt with these fields changed."""
    return _updated(attempt, changes)


def _updated(model: StatusT, changes: Mapping[str, Any]) -> StatusT:
    if unknown := changes.keys() - type(model).model_fields.keys():
        raise TypeError(f"{type(model).__name__} has no field {', '.join(sorted(unknown))}")
    return type(model).model_validate({**dict(model), **changes})
