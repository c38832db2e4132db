"""Builds the status of a FineTuneJob: its conditions, and the merge patch that leads from the old status to the new.

kubectl wait, kstatus (Flux) and Argo CD understand these conditions without a plug-in as long as a job in progress has
Reconciling=True, a job that failed or needs user action has Stalled=True, and no job has both.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Unpack

from finetune_api.names import State
from finetune_api.status import AttemptStatus, Condition, JobStatus, Progress, Report
from finetune_operator.core.actions import Event
from finetune_operator.core.changes import StatusChanges, update_condition, update_progress, update_status
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.progress import MAX_ROWS, ProgressSnapshot

ConditionType = Literal["Succeeded", "Reconciling", "Stalled", "Suspended"]
ConditionStatus = Literal["True", "False", "Unknown"]

MAX_ATTEMPTS = 10
"""`maxItems` of `status.attempts`."""
IN_PROGRESS = frozenset({"Queued", "Pending", "Running", "Restarting", "Suspending"})
PROGRESS_FIELDS = frozenset({"progress", "metrics", "best", "modules", "checkpoint"})
WARNING_REASONS = frozenset({"ImagePullFailing", "Unschedulable", "Restarting"})


@dataclass(frozen=True)
class ConditionUpdate:
    """What the four conditions are set from.

    Args:
        state: reason of Succeeded, the STATUS column of kubectl.
        message: details for the user: what is going on, or what to do.
        reason: reason of Reconciling or Stalled if it is more specific than the state.
    """

    state: State
    message: str
    reason: str = ""


def build_status(
    job: ObservedJob, update: ConditionUpdate, now: datetime, **changes: Unpack[StatusChanges]
) -> JobStatus:
    """The new status of a job: conditions for the update, `observedGeneration`, and these changes."""
    now = now.replace(microsecond=0)
    statuses = _condition_statuses(update.state)
    changes["conditions"] = [_condition(job, kind, statuses[kind], update, now) for kind in statuses]
    changes["observed_generation"] = job.generation
    if statuses["Succeeded"] != "Unknown" and job.status.completion_time is None:
        changes["completion_time"] = changes.get("completion_time") or now
    return update_status(job.status, **changes)


def _condition_statuses(state: State) -> dict[ConditionType, ConditionStatus]:
    return {
        "Succeeded": "True" if state == "Succeeded" else "False" if state == "Failed" else "Unknown",
        "Reconciling": "True" if state in IN_PROGRESS else "False",
        "Stalled": "True" if state in ("Stalled", "Failed") else "False",
        "Suspended": "True" if state == "Suspended" else "False",
    }


def _condition(
    job: ObservedJob, kind: ConditionType, status: ConditionStatus, update: ConditionUpdate, now: datetime
) -> Condition:
    old = next((it for it in job.status.conditions if it.type == kind), None)
    return Condition(
        type=kind,
        status=status,
        reason=(update.reason or update.state) if kind != "Succeeded" and status == "True" else update.state,
        message=update.message if kind == "Succeeded" or status == "True" else "",
        last_transition_time=old.last_transition_time if old and old.status == status else now,
        observed_generation=job.generation,
    )


def with_observed_generation(status: JobStatus, generation: int) -> JobStatus:
    """The same status, observed for another generation of the job."""
    conditions = [update_condition(it, observed_generation=generation) for it in status.conditions]
    return update_status(status, observed_generation=generation, conditions=conditions)


def status_fields(source: Report | ProgressSnapshot | None) -> StatusChanges:
    """The status fields that a trainer reports; what it does not report keeps its value."""
    fields: StatusChanges = {}
    if source is None:
        return fields
    if progress := source.progress:
        # A trainer of another version may not report a summary.
        fields["progress"] = progress if progress.summary else _with_summary(progress)
    if source.metrics:
        fields["metrics"] = list(source.metrics)[:MAX_ROWS]
    if source.best:
        fields["best"] = source.best
    if source.modules:
        fields["modules"] = list(source.modules)[:MAX_ROWS]
    if source.checkpoint:
        fields["checkpoint"] = source.checkpoint
    if isinstance(source, Report) and source.output:
        # A run that succeeded deletes its checkpoints.
        fields["output"], fields["checkpoint"] = source.output, None
    return fields


def _with_summary(progress: Progress) -> Progress:
    computed = Progress.at_step(
        progress.step, progress.planned_steps, epoch=progress.epoch, observed_time=progress.observed_time
    )
    return update_progress(progress, percentage=computed.percentage, summary=computed.summary)


def with_attempt(status: JobStatus, attempt: AttemptStatus) -> list[AttemptStatus]:
    """The attempts of a status with this one added or replaced, limited to the latest."""
    others = [it for it in status.attempts or [] if it.number != attempt.number]
    return sorted([*others, attempt], key=lambda it: it.number)[-MAX_ATTEMPTS:]


def merge_patch(old: JobStatus, new: JobStatus) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) from one status to another; empty if they are equal."""
    return _diff(old.manifest(), new.manifest())


def _diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            inner = _diff(old[key], value)
            patch |= {key: inner} if inner else {}
        elif key not in old or old[key] != value:
            patch[key] = value
    return patch


def is_progress_only(patch: dict[str, Any]) -> bool:
    """Whether a patch changes nothing but the progress of the trainer."""
    return bool(patch) and patch.keys() <= PROGRESS_FIELDS


def transition_events(old: JobStatus, new: JobStatus) -> tuple[Event, ...]:
    """The event for a change of state or of its reason; none if only messages or progress changed."""
    before, after = _state_and_reason(old), _state_and_reason(new)
    if before == after:
        return ()
    reason = after[1] or after[0]
    message = next(it.message for it in new.conditions if it.type == "Succeeded")
    warning = reason in WARNING_REASONS or any(it.type == "Stalled" and it.status == "True" for it in new.conditions)
    return (Event("Warning" if warning else "Normal", reason, message),)


def _state_and_reason(status: JobStatus) -> tuple[str, str]:
    """Reason of Succeeded, and of Stalled or Reconciling if one of them is True."""
    state = next((it.reason for it in status.conditions if it.type == "Succeeded"), "")
    details = (it.reason for it in status.conditions if it.type in ("Stalled", "Reconciling") and it.status == "True")
    return state, next(details, "")
