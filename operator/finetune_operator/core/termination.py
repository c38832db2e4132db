"""Determines how an attempt ended, and what follows from it.

The pod has the most details (exit code, OOM kill, termination message), but pods get deleted. Then the failure message
of the Kubernetes Job is used, and if the Job is gone too, what status already records.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from pydantic import ValidationError

from finetune_api.exit_codes import CRASHED, DISRUPTED, OUT_OF_MEMORY, ExitCode, Outcome, outcome_of_exit_code
from finetune_api.status import AttemptStatus, Report
from finetune_operator.core.changes import AttemptChanges, update_attempt
from finetune_operator.core.children import AttemptJob, TrainerPod
from finetune_operator.core.objects import ReasonMessage

EVICTED = Outcome("Evicted", retryable=True, consumes_retry=True)
SUSPENDED = Outcome("Suspended", retryable=True, consumes_retry=False)
DELETED = Outcome("Deleted", retryable=True, consumes_retry=False)
IMAGE_PULL_FAILED = Outcome("ImagePullFailed", retryable=False, consumes_retry=False)
DEADLINE_EXCEEDED = Outcome("DeadlineExceeded", retryable=False, consumes_retry=False)

_OUTCOMES = {
    outcome.reason: outcome
    for outcome in (
        *(outcome_of_exit_code(code) for code in ExitCode),
        CRASHED, DISRUPTED, OUT_OF_MEMORY, EVICTED, SUSPENDED, DELETED, IMAGE_PULL_FAILED, DEADLINE_EXCEEDED,
    )
}  # fmt: skip

MAX_MESSAGE_LENGTH = 1024
"""`maxLength` of `status.attempts[].message`."""
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")


def outcome_of(attempt: AttemptStatus) -> Outcome:
    """The outcome of an attempt, from the reason in its status."""
    return _OUTCOMES.get(attempt.reason or "", CRASHED)


def merge_observed_end(attempt: AttemptStatus, job: AttemptJob | None, pods: Sequence[TrainerPod]) -> AttemptStatus:
    """The attempt with what its pods and its Job show of its end; recorded facts are never overwritten."""
    pod = _most_informative(pods)
    if pod is not None and (attempt.reason is None or attempt.exit_code is None):
        changes = _end_from_pod(pod)
    elif attempt.reason is None and job is not None and job.failed is not None:
        changes = _end_from_job(job.failed)
    else:
        return attempt
    # A pod that the kubelet rejected has no container status, so no finish time.
    changes["end_time"] = changes.get("end_time") or attempt.end_time or (job.finished_at if job else None)
    return update_attempt(attempt, **changes)


def reopen(attempt: AttemptStatus) -> AttemptStatus:
    """The attempt without an end: a queue stopped its pods, and may start new ones."""
    return update_attempt(
        attempt, end_time=None, reason=None, exit_code=None, oom_killed=None, disruption=None, message=None
    )


def record_end(attempt: AttemptStatus, end_time: datetime, default: Outcome) -> AttemptStatus:
    """The attempt with this end time and reason, unless they are recorded already."""
    return update_attempt(
        attempt,
        end_time=attempt.end_time or end_time.replace(microsecond=0),
        reason=attempt.reason or default.reason,
    )


def final_report(pods: Sequence[TrainerPod]) -> Report | None:
    """The report in the trainer's termination message, if there is one."""
    pod = _most_informative(pods)
    return _parse_report(pod.terminated.message) if pod and pod.terminated else None


def describe_end(attempt: AttemptStatus) -> str:
    """The end of an attempt in one line; its full message stays in `status.attempts`."""
    if attempt.exit_code is not None:
        end = f"attempt {attempt.number} exited with code {attempt.exit_code}"
    else:
        end = f"attempt {attempt.number} ended ({attempt.reason or 'unknown reason'})"
    line = last_line(attempt.message)
    return f"{end}: {line}" if line else end


def last_line(message: str | None) -> str:
    """The last line that is not blank; of a Python traceback it is the exception."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _most_informative(pods: Sequence[TrainerPod]) -> TrainerPod | None:
    """Of the pods that ended: a disrupted one, else one that failed, else any; of equals the newest."""
    ended = [pod for pod in pods if pod.terminated or (pod.terminal and (pod.status_reason or pod.disruption))]

    def rank(pod: TrainerPod) -> tuple[bool, bool, float, int]:
        failed = pod.terminated is not None and pod.terminated.exit_code != 0
        return not pod.disruption, not failed, -pod.created_at.timestamp(), pod.rank

    return min(ended, key=rank, default=None)


def _end_from_pod(pod: TrainerPod) -> AttemptChanges:
    terminated = pod.terminated
    exit_code = terminated.exit_code if terminated else None
    oom_killed = terminated is not None and terminated.oom_killed
    report = _parse_report(terminated.message) if terminated else None
    message = report.message if report else terminated.message.strip() if terminated else ""
    # A disruption or an eviction first: the exit code only shows how the trainer reacted to SIGTERM.
    if pod.disruption:
        outcome = DISRUPTED
    elif pod.evicted:
        outcome = EVICTED
    else:
        outcome = outcome_of_exit_code(exit_code, oom_killed=oom_killed)
    if oom_killed:
        cause = f"memory limit ({pod.memory_limit}) exceeded" if pod.memory_limit else "the node ran out of memory"
        message = (
            f"trainer was OOM-killed: {cause}; raise spec.resources.memory, or lower "
            "spec.training.microBatchSize or spec.data.workers"
        )
    elif pod.evicted and pod.status_reason:
        message = f"pod was evicted: {pod.status_reason.message}"
    elif exit_code == ExitCode.STALLED and not message:
        message = "trainer made no progress for spec.stallTimeoutSeconds, and was stopped"
    return {
        "reason": outcome.reason,
        "exit_code": exit_code,
        "oom_killed": oom_killed or None,
        "disruption": pod.disruption or None,
        "message": message[-MAX_MESSAGE_LENGTH:] or None,
        "end_time": terminated.finished_at if terminated else None,
    }


def _end_from_job(failed: ReasonMessage) -> AttemptChanges:
    """The end as the condition Failed of the Job describes it, after the pods were deleted."""
    message = failed.message[:MAX_MESSAGE_LENGTH] or None
    if "DisruptionTarget" in failed.message:
        return {"reason": DISRUPTED.reason, "disruption": "DisruptionTarget", "message": message}
    if found := _EXIT_CODE.search(failed.message):
        exit_code = int(found.group(1))
        return {"reason": outcome_of_exit_code(exit_code).reason, "exit_code": exit_code, "message": message}
    outcome = DEADLINE_EXCEEDED if failed.reason == DEADLINE_EXCEEDED.reason else CRASHED
    return {"reason": outcome.reason, "message": message}


def _parse_report(text: str) -> Report | None:
    try:
        return Report.model_validate_json(text) if text.startswith("{") else None
    except ValidationError:
        return None
