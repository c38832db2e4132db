"""The heart: what to do about one FineTuneJob, given what the cluster says about it. Pure, and the same at every call.

An attempt goes announced (its number is in status) -> created (its Job exists) -> running -> ended (its Job is Failed
or gone, and with it every pod) -> the next one, or the end. Each step is one write and is recognized by what the write
left behind, so an operator that dies before or after any of them goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api.exit_codes import CRASHED, SUCCEEDED
from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER, State, attempt_name, output_claim
from finetune_api.status import Attempt
from finetune_operator.config import Config
from finetune_operator.core import active_deadline, termination
from finetune_operator.core.actions import Delete, Look, Plan
from finetune_operator.core.builders import mounted_claims, prepare_attempt
from finetune_operator.core.children import AttemptJob, Children, TrainerPod
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.status import (
    Standing,
    merge_patch,
    only_progress,
    standing,
    told,
    transition,
    with_record,
)

MAX_BACKOFF_SECONDS = 300
LASTED_SECONDS = 600
"""An attempt that lasted this long was a good one: the waiting before the next starts from the beginning."""
MAX_MISSING_NAMED = 5
LOOK_AGAIN_SECONDS = 1.0
MAX_LEAVINGS = 500
"""ConfigMaps of earlier attempts go with the FineTuneJob itself."""

CANNOT_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CANNOT_START = {
    "CreateContainerConfigError": "create what is missing, and it starts by itself",
    "CreateContainerError": "its node tries again by itself; what it says has to be mended first",
}
"""What a person can do, by the kubelet's reason."""


def reconcile(job: ObservedJob, children: Children, now: datetime, config: Config) -> Plan:
    """What to do about a job.

    Args:
        children: what belongs to it; foreign Jobs of the same name are among them.
    """
    if job.deleting:
        return Plan()
    if job.finished:
        return _tidy(job, children, now)
    if job.document is None:
        return _not_understood(job, children, now)
    return _Course(job, job.document, children, now, config).plan()


def refused(job: ObservedJob, message: str, now: datetime) -> Plan:
    """What to do when the API server refused to create what an attempt needs: say so, and try again later."""
    return _say(job, Standing("Stalled", message, "CreationRefused"), now)


def _not_understood(job: ObservedJob, children: Children, now: datetime) -> Plan:
    """An operator of another version may have started it: what runs goes on, but can be stopped."""
    plan = _say(job, Standing("Stalled", f"the job does not obey the language: {job.problem}", "InvalidJob"), now)
    return replace(plan, deletes=_stop(job, children)) if job.suspended else plan


def _stop(job: ObservedJob, children: Children) -> tuple[Delete, ...]:
    """The end of whatever of a job still runs."""
    left = (it for it in children.jobs if it.owner_uid == job.uid and not it.finished and not it.deleting)
    return tuple(Delete(it.name, it.uid) for it in left)


def _tidy(job: ObservedJob, children: Children, now: datetime) -> Plan:
    """Terminal is terminal: whatever of it still runs is stopped, and nothing is ever started again."""
    status = job.status
    if status.observed_generation != job.generation:
        conditions = [it.model_copy(update={"observed_generation": job.generation}) for it in status.conditions]
        status = status.model_copy(update={"observed_generation": job.generation, "conditions": conditions})
    if status is not job.status:
        return Plan(status=status, deletes=_stop(job, children))
    wait = _until_cleanup(job, now)
    if wait is None:
        return Plan(deletes=_stop(job, children))
    if wait > 0:
        return Plan(deletes=_stop(job, children), requeue_after=wait)
    return _clean_up(job, children, now)


def _until_cleanup(job: ObservedJob, now: datetime) -> float | None:
    """Seconds until what a finished job has left is deleted; None when it is to stay, or is gone."""
    ttl, ended = job.spec.get("ttlSecondsAfterFinished"), job.status.completion_time
    if not isinstance(ttl, int) or ended is None or job.status.cleanup_time is not None:
        return None
    return (ended - now).total_seconds() + ttl


def _clean_up(job: ObservedJob, children: Children, now: datetime) -> Plan:
    """Delete Jobs, pods and ConfigMaps; that it is done is written down once nothing of them is found any more."""
    if children.leavings is None:
        last = job.status.attempt or 0
        numbers = range(max(1, last + 1 - MAX_LEAVINGS), last + 1)
        return Plan(look=Look(leavings=tuple(attempt_name(job.key.name, number) for number in numbers)))
    jobs = [it for it in children.jobs if it.owner_uid == job.uid]
    configmaps = [it for it in children.leavings if it.owner_uid == job.uid]
    if not jobs and not configmaps and not any(pod.alive and _is_of(job, pod) for pod in children.pods):
        return Plan(status=job.status.model_copy(update={"cleanup_time": now.replace(microsecond=0)}))
    deletes = [Delete(it.name, it.uid) for it in jobs if not it.deleting]
    deletes += [Delete(it.name, it.uid, "configmaps") for it in configmaps]
    return Plan(deletes=tuple(deletes), requeue_after=LOOK_AGAIN_SECONDS)


def _is_of(job: ObservedJob, pod: TrainerPod) -> bool:
    """Pods of an earlier job of the same name carry the same labels."""
    return job.status.start_time is not None and pod.created >= job.status.start_time


def _say(job: ObservedJob, where: Standing, now: datetime, **changes: Any) -> Plan:
    """Write down where a job stands, if that is news."""
    status = standing(job, where, now, **changes)
    if not merge_patch(job.status, status):
        return Plan()
    return Plan(status=status, events=transition(job.status, status))


class _Course:
    """One job on its course; every method ends in a plan, and reads as one step of the story."""

    def __init__(
        self, job: ObservedJob, document: FineTuneJob, children: Children, now: datetime, config: Config
    ) -> None:
        self.job = job
        self.document = document
        self.children = children
        self.now = now
        self.config = config
        self.number = job.status.attempt or 0
        found = children.job(self.number)
        self.attempt = found if found and found.owner_uid == job.uid else None
        self.pods = tuple(pod for pod in children.pods_of(self.number) if self._is_ours(pod))

    def _is_ours(self, pod: TrainerPod) -> bool:
        """Pods of an earlier job of the same name carry the same labels; some outlive it for a while."""
        if self.attempt is not None:
            return pod.owner_uid == self.attempt.uid
        record = self.job.record(self.number)
        return bool(record and record.start_time and pod.created >= record.start_time)

    def plan(self) -> Plan:
        if self.number == 0:
            return self._begin(1)
        attempt, record = self.attempt, self.job.record(self.number)
        if attempt is None and (record is None or record.start_time is None):
            return self._begin(self.number)
        if attempt is None or attempt.failed:
            return self._ended(attempt, self._record(attempt))
        if attempt.complete:
            return self._succeeded(attempt, self._record(attempt))
        return self._active(attempt, self._record(attempt))

    # Before an attempt runs.

    def _begin(self, number: int) -> Plan:
        """Announce an attempt, and once it is announced create it, as soon as nothing is in its way."""
        if self.job.suspended:
            return self._say("Suspended", "suspended: set spec.suspend to false to go on")
        if self.children.missing is None:
            return Plan(look=_needs(self.document))
        if self.children.busy or any(it.owner_uid != self.job.uid for it in self.children.jobs):
            return self._waiting("Pending", "waiting for the pods of an earlier run to end")
        if self.children.missing:
            return self._missing(self.children.missing)
        if number != self.job.status.attempt:
            return self._announce(number)
        return Plan(creates=prepare_attempt(self.job, self.document, number, self.config))

    def _missing(self, sentences: tuple[str, ...]) -> Plan:
        more = len(sentences) - MAX_MISSING_NAMED
        named = "; ".join(sentences[:MAX_MISSING_NAMED]) + (f"; and {more} more" if more > 0 else "")
        message = f"{named}: create what is missing, and the job goes on by itself"
        return self._waiting("Stalled", message, "MissingReference")

    def _announce(self, number: int) -> Plan:
        changes: dict[str, Any] = {"attempt": number, "spec_hash": self.document.spec.content_hash()}
        last = self.job.record(number - 1)
        if last is not None and termination.meaning(last).consumes_retry:
            changes["restarts"] = (self.job.status.restarts or 0) + 1
        return self._say("Pending", f"attempt {number} is being created", **changes)

    # While it runs.

    def _active(self, attempt: AttemptJob, record: Attempt) -> Plan:
        if self.job.suspended:
            plan = self._say(
                "Suspending", "the trainer is writing a checkpoint and stops", attempts=self._attempts(record)
            )
            return _with_delete(plan, attempt)
        limit = self.document.spec.active_deadline_seconds
        # What has ended in time has not exceeded it.
        if limit is None or record.end_time is not None:
            return self._queued_or_going(attempt, record)
        left = limit - active_deadline.used(self.job.status, attempt, record, self.now)
        if left <= 0:
            late = termination.closed(record, attempt.suspended_at or self.now, termination.DEADLINE_EXCEEDED)
            return _with_delete(self._overdue(late, limit), attempt)
        plan = self._queued_or_going(attempt, record)
        return _again_after(plan, left) if active_deadline.is_running(attempt, record) else plan

    def _queued_or_going(self, attempt: AttemptJob, record: Attempt) -> Plan:
        if attempt.suspended:
            return self._say("Queued", self._queue_hint(), attempts=self._attempts(record))
        return self._going(attempt, record)

    def _queue_hint(self) -> str:
        queue = self.document.spec.queue_name
        if queue is None:
            return "waiting for its turn in the queue"
        return f"waiting for LocalQueue {queue} of Kueue to admit it; `kubectl describe workloads` says why it waits"

    def _overdue(self, record: Attempt, limit: int) -> Plan:
        message = (
            f"attempts have run for {limit} s, all that spec.activeDeadlineSeconds allows: "
            "create the job anew with a higher one, or without it"
        )
        reason = termination.DEADLINE_EXCEEDED.reason
        return self._say("Failed", message, reason=reason, attempts=self._attempts(record), **self._report())

    def _going(self, attempt: AttemptJob, record: Attempt) -> Plan:
        pod = next(iter(self.pods), None)
        if pod is None:
            return self._pending(self._no_pod_hint(attempt), record)
        if pod.waiting and pod.waiting.reason in CANNOT_PULL:
            return self._cannot_pull(attempt, pod, record)
        if pod.waiting and pod.waiting.reason in CANNOT_START:
            message = f"the trainer cannot start: {pod.waiting.message}: {CANNOT_START[pod.waiting.reason]}"
            return self._say("Stalled", message, reason="ContainerConfig", attempts=self._attempts(record))
        if pod.running or pod.end or not pod.alive:
            return self._running(pod, record)
        if pod.unschedulable:
            return self._pending(f"no node can take the pod: {pod.unschedulable}", record, "Unschedulable")
        return self._pending("the pod is starting", record)

    def _no_pod_hint(self, attempt: AttemptJob) -> str:
        """Without a pod only events say why, and those are not ours to read; the likely reasons can be named."""
        runtime, trainer = self.document.spec.runtime, self.config.trainer
        named = {
            "ServiceAccount": trainer.service_account_name or runtime.service_account_name,
            "PriorityClass": trainer.priority_class_name or runtime.priority_class_name,
        }
        check = " and ".join(f"that {kind} {name} exists" for kind, name in named.items() if name)
        advice = f"check {check}; " if check else ""
        return f"waiting for its pod; if none comes, {advice}`kubectl describe job {attempt.name}` says why"

    def _pending(self, message: str, record: Attempt, reason: str = "") -> Plan:
        return self._say("Pending", message, reason=reason, attempts=self._attempts(record))

    def _cannot_pull(self, attempt: AttemptJob, pod: TrainerPod, record: Attempt) -> Plan:
        """Say so at once; a registry may come back, so give up only after the deadline."""
        assert pod.waiting
        # The kubelet alternates between two ways to say it; only the cause itself is worth repeating.
        cause = pod.waiting.message.rpartition("ErrImagePull: ")[2]
        message = f"image {pod.image} cannot be pulled: {cause or pod.waiting.reason}"
        deadline = (pod.scheduled or pod.created) + timedelta(seconds=self.config.trainer.image_pull_deadline_seconds)
        if self.now < deadline:
            plan = self._pending(message, record, "ImagePullFailing")
            return _again_after(plan, (deadline - self.now).total_seconds())
        told_so = record.model_copy(update={"message": message[: termination.MAX_TAIL]})
        advice = f"{message}: check spec.runtime.image, and that the cluster can reach its registry"
        plan = self._failed(termination.closed(told_so, self.now, termination.IMAGE_PULL_FAILED), advice)
        return _with_delete(plan, attempt)

    def _running(self, pod: TrainerPod, record: Attempt) -> Plan:
        """Running, with progress: a change of state is written at once, progress alone only now and then."""
        message = f"attempt {self.number} is running" if pod.running else "the trainer has ended; its pods are going"
        plan = self._say("Running", message, attempts=self._attempts(record), **self._progress())
        last = self.job.status.progress
        if plan.status is None or last is None or last.observed_time is None:
            return plan
        if not only_progress(merge_patch(self.job.status, plan.status)):
            return plan
        left = self.config.progress_interval_seconds - (self.now - last.observed_time).total_seconds()
        return Plan(requeue_after=left) if left > 0 else plan

    def _progress(self) -> dict[str, Any]:
        reading = self.children.reading
        fields = told(reading) if reading and reading.attempt == self.number else {}
        if "checkpoint" in fields:
            path = f"{self.document.destination.rstrip('/')}/{CHECKPOINTS_FOLDER}/{self.job.uid}"
            fields["checkpoint"] = fields["checkpoint"].model_copy(update={"path": path})
        return fields

    # When it has ended.

    def _succeeded(self, attempt: AttemptJob | None, record: Attempt) -> Plan:
        report = termination.report_of(self.pods)
        done = record.model_copy(update={"reason": SUCCEEDED.reason})
        done = termination.closed(done, self._ended_at(attempt, record), SUCCEEDED)
        return self._say(
            "Succeeded",
            report.message if report else f"the model is at {self.document.destination}",
            attempts=self._attempts(done),
            completion_time=done.end_time,
            **self._progress() | told(report),
        )

    def _ended(self, attempt: AttemptJob | None, record: Attempt) -> Plan:
        """Once every pod is gone or terminal: the end, or the next attempt."""
        stopped_by_us = self.job.suspended or self.job.state in ("Suspending", "Suspended")
        if any(pod.alive for pod in self.pods):
            state: State = "Suspending" if stopped_by_us else "Restarting"
            return self._say(state, "waiting for the pods of the last attempt to end", attempts=self._attempts(record))
        if record.reason == SUCCEEDED.reason:
            # Its Job was deleted while it saved the model.
            return self._succeeded(attempt, record)
        if record.end_time is None and attempt is None and self.children.missing is None:
            # It is about to be called deleted: ask the API server itself, for a cache may be behind.
            return Plan(look=_needs(self.document))
        ended = self._ended_at(attempt, record)
        record = termination.closed(record, ended, termination.SUSPENDED if stopped_by_us else termination.DELETED)
        if attempt is None and stopped_by_us and termination.meaning(record).retryable:
            record = record.model_copy(update={"reason": termination.SUSPENDED.reason})
        return self._after(record)

    def _ended_at(self, attempt: AttemptJob | None, record: Attempt) -> datetime:
        """When an attempt ended: the operator may have been away, and a deleted Job leaves no time behind."""
        if attempt is not None and attempt.ended is not None:
            return attempt.ended
        progress = self._progress().get("progress") or self.job.status.progress
        seen = progress.observed_time if progress else None
        return seen if seen and record.start_time and seen >= record.start_time else self.now

    def _after(self, record: Attempt) -> Plan:
        end = termination.meaning(record)
        if not end.retryable:
            return self._failed(record, _last_words(record) or _ending(record))
        if end.consumes_retry and (self.job.status.restarts or 0) >= self.document.spec.retry.limit:
            used = self.document.spec.retry.limit
            return self._failed(record, f"gave up after {used} retries: {_ending(record)}")
        if self.job.suspended:
            message = "suspended: set spec.suspend to false to go on from the last checkpoint"
            return self._say("Suspended", message, attempts=self._attempts(record), **self._report())
        limit = self.document.spec.active_deadline_seconds
        if limit is not None and (self.job.status.active_seconds or 0) >= limit:
            return self._overdue(record, limit)
        if self.job.record(self.number) == record and self._wait(record) <= 0:
            return self._begin(self.number + 1)
        return self._restarting(record)

    def _restarting(self, record: Attempt) -> Plan:
        wait = max(self._wait(record), 0.0)
        plan = self._say(
            "Restarting",
            f"attempt {self.number + 1} follows and resumes from the last checkpoint: {_ending(record)}",
            attempts=self._attempts(record),
            **self._report(),
        )
        return _again_after(plan, wait)

    def _wait(self, record: Attempt) -> float:
        """Seconds until the next attempt: doubling with each that ended soon, none after a suspension."""
        if record.reason == termination.SUSPENDED.reason:
            return 0.0
        short = 0
        for it in reversed(with_record(self.job.status, record)):
            if it.reason == termination.SUSPENDED.reason or _lasted(it) >= LASTED_SECONDS:
                break
            short += 1
        backoff = self.document.spec.retry.backoff_seconds
        delay = min(max(MAX_BACKOFF_SECONDS, backoff), backoff * 2.0 ** max(0, short - 1))
        return delay - (self.now - (record.end_time or self.now)).total_seconds()

    def _failed(self, record: Attempt, message: str) -> Plan:
        return self._say(
            "Failed",
            message,
            reason=record.reason or CRASHED.reason,
            attempts=self._attempts(record),
            completion_time=record.end_time,
            **self._report(),
        )

    # Words.

    def _report(self) -> dict[str, Any]:
        return self._progress() | told(termination.report_of(self.pods))

    def _record(self, attempt: AttemptJob | None) -> Attempt:
        """The record of the current attempt, with what is now known of its start and its end."""
        record = self.job.record(self.number) or Attempt(
            number=self.number, job=attempt_name(self.job.key.name, self.number)
        )
        if attempt is not None and record.start_time is None:
            record = record.model_copy(update={"start_time": attempt.created})
        over = attempt is None or attempt.finished
        pods = [pod for pod in self.pods if over or not pod.gone]
        alive = any(pod.alive for pod in pods)
        # While a pod is there it will tell more than the Job's one sentence.
        seen = termination.seen_end(record, None if alive else attempt, pods)
        if attempt is not None and not over and (attempt.suspended or any(pod.running for pod in pods)):
            # A queue took its pods away, and may give it new ones: the attempt is not over.
            return termination.reopened(seen)
        return seen

    def _attempts(self, record: Attempt) -> list[Attempt]:
        return with_record(self.job.status, record)

    def _say(self, state: State, message: str, *, reason: str = "", **changes: Any) -> Plan:
        attempts: list[Attempt] = changes.get("attempts") or []
        if self.job.status.start_time is None and attempts:
            changes["start_time"] = attempts[0].start_time
        record = next((it for it in attempts if it.number == self.number), None)
        if record is not None:
            changes |= active_deadline.told(self.job.status, self.attempt, record, self.now)
        return _say(self.job, Standing(state, message, reason), self.now, **changes)

    def _waiting(self, state: State, message: str, reason: str = "") -> Plan:
        return _again_after(self._say(state, message, reason=reason), self.config.recheck_interval_seconds)


def _needs(document: FineTuneJob) -> Look:
    """What has to exist before an attempt; a claim that the operator makes itself is not among it."""
    own = output_claim(document.name) if document.spec.output.destination is None else None
    runtime = document.spec.runtime
    references = [it.value_from.config_map_key_ref for it in runtime.env if it.value_from]
    sources = [it.config_map_ref for it in runtime.env_from]
    return Look(
        claims=tuple(claim for claim in mounted_claims(document) if claim != own),
        configmaps=tuple(it.name for it in sources if it and not it.optional),
        keys=tuple((it.name, it.key) for it in references if it and not it.optional),
    )


def _with_delete(plan: Plan, attempt: AttemptJob) -> Plan:
    return replace(plan, deletes=() if attempt.deleting else (Delete(attempt.name, attempt.uid),))


def _again_after(plan: Plan, seconds: float) -> Plan:
    """The plan, and another look after so long; an earlier one that it wants already stays."""
    known = plan.requeue_after
    return replace(plan, requeue_after=seconds if known is None else min(known, seconds))


def _ending(record: Attempt) -> str:
    """One line about the end of an attempt; the whole tail of the log stays with the attempt."""
    code = f"exit code {record.exit_code}" if record.exit_code is not None else record.reason or "no exit code"
    words = _last_words(record)
    return f"attempt {record.number} ended with {code}" + (f": {words}" if words else "")


def _last_words(record: Attempt) -> str:
    lines = [line.strip() for line in (record.message or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _lasted(record: Attempt) -> float:
    if record.start_time is None or record.end_time is None:
        return 0.0
    return (record.end_time - record.start_time).total_seconds()
