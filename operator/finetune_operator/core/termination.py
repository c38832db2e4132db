"""How an attempt ended, and what that means for the next one.

The pod knows best (exit code, out of memory, its last words), but pods vanish; then the Kubernetes Job's own sentence
has to do, and when that is gone too, what was written down before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.exit_codes import CRASHED, DISRUPTED, OUT_OF_MEMORY, ExitCode, Outcome, outcome_of_exit_code
from finetune_api.status import Attempt, Report
from finetune_operator.core.children import AttemptJob, Said, TrainerPod

EVICTED = Outcome("Evicted", retryable=True, consumes_retry=True)
SUSPENDED = Outcome("Suspended", retryable=True, consumes_retry=False)
DELETED = Outcome("Deleted", retryable=True, consumes_retry=False)
IMAGE_PULL_FAILED = Outcome("ImagePullFailed", retryable=False, consumes_retry=False)
DEADLINE_EXCEEDED = Outcome("DeadlineExceeded", retryable=False, consumes_retry=False)

_BY_REASON = {
    end.reason: end
    for end in (
        *(outcome_of_exit_code(code) for code in ExitCode),
        CRASHED, DISRUPTED, OUT_OF_MEMORY, EVICTED, SUSPENDED, DELETED, IMAGE_PULL_FAILED, DEADLINE_EXCEEDED,
    )
}  # fmt: skip

MAX_TAIL = 1024
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")


def meaning(record: Attempt) -> Outcome:
    """What a written-down end means for the next attempt."""
    return _BY_REASON.get(record.reason or "", CRASHED)


def seen_end(record: Attempt, job: AttemptJob | None, pods: Sequence[TrainerPod]) -> Attempt:
    """The record of an attempt with whatever is now known of its end; what is known already is never lost."""
    pod = _telling(pods)
    if pod is not None and (record.reason is None or record.exit_code is None):
        told = _told_by_pod(pod)
        # A pod the kubelet turned away has no time of its end: the one that was written down stays.
        ended = told["end_time"] or record.end_time or (job.ended if job else None)
        return record.model_copy(update=told | {"end_time": ended})
    if record.reason is None and job is not None and job.failed is not None:
        return record.model_copy(update=_told_by_job(job.failed) | {"end_time": record.end_time or job.ended})
    return record


def reopened(record: Attempt) -> Attempt:
    """The record of an attempt that goes on, without what was seen of the end of its earlier pods."""
    forgotten = ("reason", "exit_code", "oom_killed", "disruption", "message", "end_time")
    return record.model_copy(update=dict.fromkeys(forgotten))


def closed(record: Attempt, ended: datetime, fallback: Outcome) -> Attempt:
    """The record of an attempt of which nothing is left to wait for."""
    end_time = record.end_time or ended.replace(microsecond=0)
    return record.model_copy(update={"reason": record.reason or fallback.reason, "end_time": end_time})


def report_of(pods: Sequence[TrainerPod]) -> Report | None:
    """The trainer's own last word, if it left one."""
    pod = _telling(pods)
    return _report(pod.end.message) if pod and pod.end else None


def _telling(pods: Sequence[TrainerPod]) -> TrainerPod | None:
    """The pod that says most about the end: one that was taken away, then one that failed, then any that ended."""
    ended = [pod for pod in pods if pod.end or (not pod.alive and (pod.evicted or pod.disruption))]
    return min(ended, key=_how_little_it_tells, default=None)


def _how_little_it_tells(pod: TrainerPod) -> tuple[bool, bool, float, int]:
    return not pod.disruption, not (pod.end and pod.end.exit_code), -pod.created.timestamp(), pod.rank


def _told_by_pod(pod: TrainerPod) -> dict[str, Any]:
    end = pod.end
    report = _report(end.message) if end else None
    words = report.message if report else _tail(end.message) if end else ""
    return {
        "reason": _meaning_of(pod).reason,
        "exit_code": end.exit_code if end else None,
        "oom_killed": True if end and end.oom_killed else None,
        "disruption": pod.disruption or None,
        "message": _explained(pod, words) or None,
        "end_time": end.finished if end else None,
    }


def _meaning_of(pod: TrainerPod) -> Outcome:
    if pod.disruption:
        return DISRUPTED
    if pod.evicted and pod.evicted.reason == "Evicted":
        return EVICTED
    return outcome_of_exit_code(pod.end.exit_code if pod.end else None, oom_killed=bool(pod.end and pod.end.oom_killed))


def _explained(pod: TrainerPod, words: str) -> str:
    """The trainer's words, or ours where it could not speak."""
    if pod.end and pod.end.oom_killed:
        limit = f"its limit of {pod.memory_limit}" if pod.memory_limit else "what its node has"
        return (
            f"the trainer was killed because it used more memory than {limit}: raise spec.resources.memory, or lower "
            "spec.training.microBatchSize or spec.data.workers"
        )
    if pod.evicted and pod.evicted.reason == "Evicted":
        return _tail(f"the pod was evicted: {pod.evicted.message}")
    if pod.end and pod.end.exit_code == ExitCode.STALLED and not words:
        return "the trainer got nothing done for spec.stallTimeoutSeconds and was ended"
    return words


def _told_by_job(failed: Said) -> dict[str, Any]:
    """The end as the Kubernetes Job tells it, after its pods have vanished."""
    code = _EXIT_CODE.search(failed.message)
    if "DisruptionTarget" in failed.message:
        return {"reason": DISRUPTED.reason, "disruption": "DisruptionTarget", "message": failed.message[:MAX_TAIL]}
    if code:
        number = int(code.group(1))
        return {
            "reason": outcome_of_exit_code(number).reason,
            "exit_code": number,
            "message": failed.message[:MAX_TAIL],
        }
    reason = DEADLINE_EXCEEDED.reason if failed.reason == DEADLINE_EXCEEDED.reason else CRASHED.reason
    return {"reason": reason, "message": failed.message[:MAX_TAIL] or None}


def _report(text: str) -> Report | None:
    try:
        return Report.model_validate_json(text) if text.startswith("{") else None
    except ValidationError:
        return None


def _tail(text: str) -> str:
    return text.strip()[-MAX_TAIL:]
