"""Status in the words people and tools read: conditions, and the smallest patch from what is to what should be.

kubectl wait, kstatus (Flux) and Argo CD read these conditions without a plug-in, which holds only as long as a job that
goes on has Reconciling=True, one that failed or waits for a person has Stalled=True, and none has both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from finetune_api.names import State
from finetune_api.status import Attempt, Condition, JobStatus, Report
from finetune_operator.core.actions import Event
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.progress import MAX_ROWS, Reading

ConditionType = Literal["Succeeded", "Reconciling", "Stalled", "Suspended"]
Verdict = Literal["True", "False", "Unknown"]

MAX_ATTEMPTS = 10
PROGRESS_FIELDS = frozenset({"progress", "metrics", "modules", "checkpoint"})
TROUBLE = frozenset({"ImagePullFailing", "Unschedulable", "Restarting"})


@dataclass(frozen=True)
class Standing:
    """Where a job stands.

    Args:
        state: the one word a person reads.
        message: one sentence: what is going on, or what to do.
        reason: why, more closely than the state, in one word; the state itself when left out.
    """

    state: State
    message: str
    reason: str = ""


def standing(job: ObservedJob, where: Standing, now: datetime, **changes: Any) -> JobStatus:
    """The status of a job that stands there, with these fields changed."""
    now = now.replace(microsecond=0)
    truths = _truths(where.state)
    conditions = [_condition(job, kind, truths[kind], where, now) for kind in truths]
    if truths["Succeeded"] != "Unknown" and job.status.completion_time is None:
        changes["completion_time"] = changes.get("completion_time") or now
    return job.status.model_copy(
        update={**changes, "observed_generation": job.generation, "conditions": conditions},
    )


def with_record(status: JobStatus, record: Attempt) -> list[Attempt]:
    """The attempts of a status, with this record put in its place."""
    others = [it for it in status.attempts or [] if it.number != record.number]
    return sorted([*others, record], key=lambda it: it.number)[-MAX_ATTEMPTS:]


def told(source: Report | Reading | None) -> dict[str, Any]:
    """The fields of a status that a trainer speaks of; what it does not mention stays as it was."""
    if source is None:
        return {}
    fields: dict[str, Any] = {"progress": source.progress, "checkpoint": source.checkpoint}
    fields |= {"metrics": list(source.metrics)[:MAX_ROWS], "modules": list(source.modules)[:MAX_ROWS]}
    if isinstance(source, Report) and source.output:
        # The checkpoints of a run that succeeded are gone: what is left of it is the output.
        return {**{name: value for name, value in fields.items() if value}, "output": source.output, "checkpoint": None}
    return {name: value for name, value in fields.items() if value}


def merge_patch(old: JobStatus, new: JobStatus) -> dict[str, Any]:
    """The JSON merge patch from one status to another; empty when they say the same."""
    return _merge_patch(old.manifest(), new.manifest())


def only_progress(patch: dict[str, Any]) -> bool:
    """Whether a patch tells nothing but how far the trainer has come."""
    return bool(patch) and patch.keys() <= PROGRESS_FIELDS


def transition(old: JobStatus, new: JobStatus) -> tuple[Event, ...]:
    """The event that tells of a change from one status to the other, if a person would want to be told."""
    before, after = _words(old.conditions), _words(new.conditions)
    if before == after or not after:
        return ()
    state, stalled, reconciling = after
    reason = stalled or reconciling or state
    message = next(it.message for it in new.conditions if it.type == "Succeeded")
    troubled = bool(stalled) or reason in TROUBLE
    return (Event("Warning" if troubled else "Normal", reason, message),)


def _truths(state: State) -> dict[ConditionType, Verdict]:
    going_on = state in ("Queued", "Pending", "Running", "Restarting", "Suspending")
    return {
        "Succeeded": "True" if state == "Succeeded" else "False" if state == "Failed" else "Unknown",
        "Reconciling": "True" if going_on else "False",
        "Stalled": "True" if state in ("Stalled", "Failed") else "False",
        "Suspended": "True" if state == "Suspended" else "False",
    }


def _condition(job: ObservedJob, kind: ConditionType, truth: Verdict, where: Standing, now: datetime) -> Condition:
    old = next((it for it in job.status.conditions if it.type == kind), None)
    told_here = kind == "Succeeded" or truth == "True"
    reason = where.state if kind == "Succeeded" or truth == "False" else where.reason or where.state
    return Condition(
        type=kind,
        status=truth,
        reason=reason,
        message=where.message if told_here else "",
        last_transition_time=old.last_transition_time if old and old.status == truth else now,
        observed_generation=job.generation,
    )


def _words(conditions: Iterable[Condition]) -> tuple[str, str, str] | None:
    """State, why it is stalled, why it is not done: what a change of makes an event."""
    found = {it.type: it for it in conditions}
    if "Succeeded" not in found:
        return None
    why = {kind: it.reason if it.status == "True" else "" for kind, it in found.items()}
    return found["Succeeded"].reason, why.get("Stalled", ""), why.get("Reconciling", "")


def _merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            inner = _merge_patch(old[key], value)
            patch |= {key: inner} if inner else {}
        elif key not in old or old[key] != value:
            patch[key] = value
    return patch
