"""Decides what to do about one FineTuneJob, given the observed state of the cluster. Pure and deterministic.

Each attempt is announced (its number is in status), created (its Job exists), active, and ended (its Job failed or is
gone, and so are all its pods); then the next attempt is announced, or the job is finished. Each step is one write and
is recognized by what that write left in the cluster, so an operator that dies before or after any write resumes there.

The cases, in the order in which they are checked; comments below and the table test refer to these numbers:

 1    The FineTuneJob is being deleted              nothing: the garbage collector deletes its children

 2    The job is finished: delete Jobs that are still active, and
 2.1    the generation is not observed              set observedGeneration
 2.2    no TTL, or already cleaned up               nothing more
 2.3    the TTL has not passed                      requeue
 2.4    leftover ConfigMaps are unknown             look them up
 2.5    Jobs, pods or ConfigMaps exist              delete them
 2.6    otherwise                                   set cleanupTime

 3    The spec is invalid                           Stalled (InvalidJob); if suspended, delete active Jobs

 4    No Job of the current attempt has existed
 4.1    spec.suspend                                Suspended
 4.2    references are unknown                      look them up
 4.3    Jobs or pods of an earlier run remain       Pending
 4.4    referenced objects are missing              Stalled (MissingReference)
 4.5    the attempt is not announced                Pending; set attempt, restarts and specHash
 4.6    otherwise                                   create the claim, the ConfigMap and the Job

 5    The Job of the attempt is active
 5.1    spec.suspend                                Suspending; delete the Job
 5.2    activeDeadlineSeconds exceeded              Failed (DeadlineExceeded); delete the Job
 5.3    the queue suspends the Job                  Queued
 5.4    no pod                                      Pending
 5.5    the image cannot be pulled                  Pending (ImagePullFailing)
 5.6    the same, past the image pull deadline      Failed (ImagePullFailed); delete the Job
 5.7    the container cannot be created             Stalled (CreateContainerConfigError, ...)
 5.8    the trainer is running or has terminated    Running, with progress
 5.9    the pod is unschedulable                    Pending (Unschedulable)
 5.10   otherwise                                   Pending

 6    The Job of the attempt is complete            Succeeded

 7    The Job of the attempt failed or was deleted
 7.1    a pod is still active                       Restarting, or Suspending
 7.2    the trainer had succeeded                   Succeeded
 7.3    only the cache says the Job is gone         look it up
 7.4    the outcome is not retryable                Failed
 7.5    the retry limit is reached                  Failed
 7.6    spec.suspend                                Suspended
 7.7    activeDeadlineSeconds used up               Failed (DeadlineExceeded)
 7.8    end not in status, or backoff not over      Restarting
 7.9    otherwise                                   start the next attempt, as in 4
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Unpack

from finetune_api.exit_codes import CRASHED, SUCCEEDED
from finetune_api.job import FineTuneJob
from finetune_api.names import CHECKPOINTS_FOLDER, State, attempt_name, output_claim
from finetune_api.status import AttemptStatus, CheckpointStatus
from finetune_operator.config import Config
from finetune_operator.core import active_deadline, termination
from finetune_operator.core.actions import Actions, Delete, Lookup
from finetune_operator.core.builders import build_attempt, mounted_claims
from finetune_operator.core.changes import StatusChanges, update_attempt, update_status
from finetune_operator.core.children import AttemptJob, Children, TrainerPod
from finetune_operator.core.objects import ReasonMessage
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.status import (
    ConditionUpdate,
    build_status,
    is_progress_only,
    merge_patch,
    status_fields,
    transition_events,
    with_attempt,
    with_observed_generation,
)

MAX_BACKOFF_SECONDS = 300
BACKOFF_RESET_SECONDS = 600
"""An attempt that ran this long resets the backoff, as a container does for the kubelet."""
MAX_MISSING_NAMED = 5
CLEANUP_POLL_SECONDS = 1.0
MAX_LEFTOVERS = 500
"""ConfigMaps looked up for cleanup; those of still earlier attempts are deleted with the FineTuneJob."""

IMAGE_PULL_ERRORS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONTAINER_CREATE_ERRORS = {
    "CreateContainerConfigError": "create the missing object; the kubelet retries",
    "CreateContainerError": "fix the cause; the kubelet retries",
}
"""Waiting reasons of the kubelet, and what the user can do."""


def reconcile(job: ObservedJob, children: Children, now: datetime, config: Config) -> Actions:
    """What to do about a job.

    Args:
        children: objects labeled with the job, including ones that another owner controls.
    """
    if job.deleting:  # case 1
        return Actions()
    if job.finished:
        return _reconcile_finished(job, children, now)
    if job.parsed is None:  # case 3
        update = ConditionUpdate("Stalled", f"invalid FineTuneJob: {job.parse_error}", "InvalidJob")
        actions = _status_update(job, update, now)
        # An operator of another version may have started it: leave it running, but let the user stop it.
        return actions.deleting(*_active_jobs(job, children)) if job.suspended else actions
    return AttemptReconciler(job, job.parsed, children, now, config).reconcile()


def reconcile_rejected(job: ObservedJob, message: str, now: datetime) -> Actions:
    """What to do when the API server rejected an object of an attempt: report it; the worker retries later."""
    return _status_update(job, ConditionUpdate("Stalled", message, "FailedCreate"), now)


def _status_update(
    job: ObservedJob, update: ConditionUpdate, now: datetime, **changes: Unpack[StatusChanges]
) -> Actions:
    status = build_status(job, update, now, **changes)
    if not merge_patch(job.status, status):
        return Actions()
    return Actions(status=status, events=transition_events(job.status, status))


def _active_jobs(job: ObservedJob, children: Children) -> list[AttemptJob]:
    return [it for it in children.jobs if it.owner_uid == job.uid and not it.finished]


# Case 2: finished jobs.


def _reconcile_finished(job: ObservedJob, children: Children, now: datetime) -> Actions:
    """Nothing is started again; what still runs is stopped, and leftovers are deleted after the TTL."""
    stop = Actions().deleting(*_active_jobs(job, children))
    status = job.status
    if status.observed_generation != job.generation:  # case 2.1
        return Actions(status=with_observed_generation(status, job.generation), deletes=stop.deletes)
    ttl = job.spec.get("ttlSecondsAfterFinished")
    if not isinstance(ttl, int) or status.completion_time is None or status.cleanup_time is not None:  # case 2.2
        return stop
    remaining = ttl - (now - status.completion_time).total_seconds()
    if remaining > 0:  # case 2.3
        return stop.requeue_within(remaining)
    return _clean_up(job, children, now)


def _clean_up(job: ObservedJob, children: Children, now: datetime) -> Actions:
    if children.leftover_config_maps is None:  # case 2.4
        last = job.status.attempt or 0
        numbers = range(max(1, last + 1 - MAX_LEFTOVERS), last + 1)
        names = tuple(attempt_name(job.key.name, number) for number in numbers)
        return Actions(lookup=Lookup(leftover_config_maps=names))
    jobs = [it for it in children.jobs if it.owner_uid == job.uid]
    config_maps = [it for it in children.leftover_config_maps if it.owner_uid == job.uid]
    start_time = job.status.start_time
    # Pods of an earlier job of the same name have the same labels, but are older.
    pods = [it for it in children.pods if not it.terminal and start_time and it.created_at >= start_time]
    if jobs or config_maps or pods:  # case 2.5
        deletes = [Delete("jobs", it.name, it.uid) for it in jobs if not it.deleting]
        deletes += [Delete("configmaps", it.name, it.uid) for it in config_maps]
        return Actions(deletes=tuple(deletes), requeue_after=CLEANUP_POLL_SECONDS)
    return Actions(status=update_status(job.status, cleanup_time=now.replace(microsecond=0)))  # case 2.6


class AttemptReconciler:
    """Reconciles the current attempt of a job that is valid and not finished: cases 4 to 7."""

    def __init__(
        self, job: ObservedJob, parsed: FineTuneJob, children: Children, now: datetime, config: Config
    ) -> None:
        self.job = job
        self.parsed = parsed
        self.spec = parsed.spec
        self.children = children
        self.now = now
        self.config = config
        self.number = job.status.attempt or 0
        self.recorded = job.attempt(self.number)
        attempt_job = children.attempt_job(self.number)
        self.attempt_job = attempt_job if attempt_job and attempt_job.owner_uid == job.uid else None
        self.pods = tuple(pod for pod in children.pods_of(self.number) if self._owns(pod))

    def _owns(self, pod: TrainerPod) -> bool:
        """Whether a pod is not one of an earlier job of the same name, which may outlive that job for a while."""
        if self.attempt_job is not None:
            return pod.owner_uid == self.attempt_job.uid
        start_time = self.recorded.start_time if self.recorded else None
        return start_time is not None and pod.created_at >= start_time

    def reconcile(self) -> Actions:
        started = self.recorded is not None and self.recorded.start_time is not None
        if self.number == 0 or (self.attempt_job is None and not started):
            return self._start(max(1, self.number))
        attempt = self._observe_attempt()
        if self.attempt_job is None or self.attempt_job.failed:
            return self._reconcile_ended(attempt)
        if self.attempt_job.complete:  # case 6
            return self._succeed(attempt)
        return self._reconcile_active(self.attempt_job, attempt)

    def _observe_attempt(self) -> AttemptStatus:
        """The recorded status of the current attempt, updated with what its Job and pods show of its start and end."""
        job = self.attempt_job
        name = attempt_name(self.job.key.name, self.number)
        attempt = self.recorded or AttemptStatus(number=self.number, job=name)
        if job is not None and attempt.start_time is None:
            attempt = update_attempt(attempt, start_time=job.created_at)
        finished = job is None or job.finished
        pods = [pod for pod in self.pods if finished or not pod.deleted]
        # As long as a pod is active, wait for its end: it shows more than the failure message of the Job.
        pods_active = any(not pod.terminal for pod in pods)
        attempt = termination.merge_observed_end(attempt, None if pods_active else job, pods)
        if job is not None and not finished and (job.suspended or any(pod.running for pod in pods)):
            # Pods that a queue stopped, and may start again, do not end the attempt.
            return termination.reopen(attempt)
        return attempt

    # Case 4: before the attempt runs.

    def _start(self, number: int) -> Actions:
        if self.job.suspended:  # case 4.1
            return self._update_status("Suspended", "suspended; set spec.suspend to false to resume")
        if self.children.missing_references is None:  # case 4.2
            return Actions(lookup=self._required_references())
        foreign = any(it.owner_uid != self.job.uid for it in self.children.jobs)
        if self.children.active or foreign:  # case 4.3
            actions = self._update_status("Pending", "waiting for pods of an earlier run to terminate")
            return actions.requeue_within(self.config.recheck_interval_seconds)
        if self.children.missing_references:  # case 4.4
            return self._report_missing_references(self.children.missing_references)
        if number != self.job.status.attempt:  # case 4.5
            return self._announce(number)
        return Actions(creates=build_attempt(self.job, self.parsed, number, self.config))  # case 4.6

    def _required_references(self) -> Lookup:
        """What must exist before an attempt is created, except for the claim that the operator creates itself."""
        own_claim = output_claim(self.parsed.name) if self.spec.output.destination is None else None
        runtime = self.spec.runtime
        keys = [it.value_from.config_map_key_ref for it in runtime.env if it.value_from]
        config_maps = [it.config_map_ref for it in runtime.env_from]
        return Lookup(
            claims=tuple(claim for claim in mounted_claims(self.parsed) if claim != own_claim),
            config_maps=tuple(it.name for it in config_maps if it and not it.optional),
            config_map_keys=tuple((it.name, it.key) for it in keys if it and not it.optional),
        )

    def _report_missing_references(self, references: tuple[str, ...]) -> Actions:
        more = len(references) - MAX_MISSING_NAMED
        named = "; ".join(references[:MAX_MISSING_NAMED]) + (f"; and {more} more" if more > 0 else "")
        message = f"{named}; the attempt starts once all references exist in namespace {self.job.key.namespace}"
        actions = self._update_status("Stalled", message, reason="MissingReference")
        return actions.requeue_within(self.config.recheck_interval_seconds)

    def _announce(self, number: int) -> Actions:
        changes: StatusChanges = {"attempt": number, "spec_hash": self.spec.content_hash()}
        previous = self.job.attempt(number - 1)
        if previous is not None and termination.outcome_of(previous).consumes_retry:
            changes["restarts"] = (self.job.status.restarts or 0) + 1
        return self._update_status("Pending", f"creating attempt {number}", **changes)

    # Case 5: while the attempt runs.

    def _reconcile_active(self, attempt_job: AttemptJob, attempt: AttemptStatus) -> Actions:
        if self.job.suspended:  # case 5.1
            actions = self._update_status("Suspending", "stopping: the trainer is writing a checkpoint", attempt)
            return actions.deleting(attempt_job)
        limit = self.spec.active_deadline_seconds
        # An attempt that ended in time has not exceeded the deadline, although its Job may not be finished yet.
        if limit is None or attempt.end_time is not None:
            return self._reconcile_pods(attempt_job, attempt)
        elapsed = active_deadline.elapsed_seconds(self.job.status, attempt_job, attempt, self.now)
        if elapsed >= limit:  # case 5.2
            end_time = attempt_job.suspended_at or self.now
            attempt = termination.record_end(attempt, end_time, termination.DEADLINE_EXCEEDED)
            return self._fail_on_deadline(attempt, limit).deleting(attempt_job)
        actions = self._reconcile_pods(attempt_job, attempt)
        return actions.requeue_within(limit - elapsed) if active_deadline.is_active(attempt_job, attempt) else actions

    def _reconcile_pods(self, attempt_job: AttemptJob, attempt: AttemptStatus) -> Actions:
        if attempt_job.suspended:  # case 5.3
            return self._update_status("Queued", self._queued_message(), attempt)
        if not self.pods:  # case 5.4
            return self._update_status("Pending", self._no_pod_message(attempt_job), attempt)
        pod = self.pods[0]
        waiting = pod.waiting
        if waiting and waiting.reason in IMAGE_PULL_ERRORS:
            return self._handle_image_pull_error(attempt_job, pod, waiting, attempt)
        if waiting and waiting.reason in CONTAINER_CREATE_ERRORS:  # case 5.7
            message = f"container cannot be created: {waiting.message}; {CONTAINER_CREATE_ERRORS[waiting.reason]}"
            return self._update_status("Stalled", message, attempt, reason=waiting.reason)
        if pod.running or pod.terminated or pod.terminal:  # case 5.8
            return self._report_running(pod, attempt)
        if pod.unschedulable:  # case 5.9
            message = f"pod is unschedulable: {pod.unschedulable}"
            return self._update_status("Pending", message, attempt, reason="Unschedulable")
        return self._update_status("Pending", "pod is starting", attempt)  # case 5.10

    def _queued_message(self) -> str:
        queue = self.spec.queue_name
        if queue is None:
            return "the Job is suspended; waiting for a queue to resume it"
        return f"waiting for admission by Kueue LocalQueue {queue}; see `kubectl describe workloads`"

    def _no_pod_message(self, attempt_job: AttemptJob) -> str:
        """The reason is only in events of the Job, which the operator may not read; name the likely causes."""
        runtime, trainer = self.spec.runtime, self.config.trainer
        references = {
            "ServiceAccount": trainer.service_account_name or runtime.service_account_name,
            "PriorityClass": trainer.priority_class_name or runtime.priority_class_name,
        }
        check = " and ".join(f"that {kind} {name} exists" for kind, name in references.items() if name)
        advice = f"check {check}, and " if check else ""
        return f"waiting for the pod; if none is created, {advice}see `kubectl describe job {attempt_job.name}`"

    def _handle_image_pull_error(
        self, attempt_job: AttemptJob, pod: TrainerPod, waiting: ReasonMessage, attempt: AttemptStatus
    ) -> Actions:
        """Reported at once; the attempt fails only after a deadline, because a registry may recover."""
        # ErrImagePull and ImagePullBackOff alternate; both contain the cause, and a message of it alone is stable.
        cause = waiting.message.rpartition("ErrImagePull: ")[2] or waiting.reason
        message = f"cannot pull image {pod.image}: {cause}"
        timeout = timedelta(seconds=self.config.trainer.image_pull_deadline_seconds)
        remaining = ((pod.scheduled_at or pod.created_at) + timeout - self.now).total_seconds()
        if remaining > 0:  # case 5.5
            return self._update_status("Pending", message, attempt, reason="ImagePullFailing").requeue_within(remaining)
        attempt = update_attempt(attempt, message=message[: termination.MAX_MESSAGE_LENGTH])
        attempt = termination.record_end(attempt, self.now, termination.IMAGE_PULL_FAILED)
        message = f"{message}; check spec.runtime.image, and that the cluster can reach its registry"
        return self._fail(attempt, message).deleting(attempt_job)  # case 5.6

    def _report_running(self, pod: TrainerPod, attempt: AttemptStatus) -> Actions:
        """A change of state is written at once, progress alone at most once per interval."""
        message = f"attempt {self.number} is running" if pod.running else "trainer has exited; its pods are terminating"
        actions = self._update_status("Running", message, attempt, **self._scraped_fields())
        last = self.job.status.progress
        if actions.status is None or last is None or last.observed_time is None:
            return actions
        if not is_progress_only(merge_patch(self.job.status, actions.status)):
            return actions
        remaining = self.config.progress_interval_seconds - (self.now - last.observed_time).total_seconds()
        return Actions(requeue_after=remaining) if remaining > 0 else actions

    # Cases 6 and 7: after the attempt.

    def _succeed(self, attempt: AttemptStatus) -> Actions:
        report = termination.final_report(self.pods)
        attempt = update_attempt(attempt, reason=SUCCEEDED.reason)
        attempt = termination.record_end(attempt, self._end_time(attempt), SUCCEEDED)
        message = report.message if report else f"model written to {self.parsed.destination}"
        changes = self._reported_fields()
        changes["completion_time"] = attempt.end_time
        return self._update_status("Succeeded", message, attempt, **changes)

    def _reconcile_ended(self, attempt: AttemptStatus) -> Actions:
        stopped_by_user = self.job.suspended or self.job.state in ("Suspending", "Suspended")
        if any(not pod.terminal for pod in self.pods):  # case 7.1
            state: State = "Suspending" if stopped_by_user else "Restarting"
            return self._update_status(state, f"waiting for pods of attempt {self.number} to terminate", attempt)
        if attempt.reason == SUCCEEDED.reason:  # case 7.2
            return self._succeed(attempt)
        if attempt.end_time is None and self.attempt_job is None and self.children.missing_references is None:
            return Actions(lookup=self._required_references())  # case 7.3
        default = termination.SUSPENDED if stopped_by_user else termination.DELETED
        attempt = termination.record_end(attempt, self._end_time(attempt), default)
        if self.attempt_job is None and stopped_by_user and termination.outcome_of(attempt).retryable:
            attempt = update_attempt(attempt, reason=termination.SUSPENDED.reason)
        return self._restart_or_finish(attempt)

    def _restart_or_finish(self, attempt: AttemptStatus) -> Actions:
        outcome = termination.outcome_of(attempt)
        end = termination.describe_end(attempt)
        retries, deadline = self.spec.retry.limit, self.spec.active_deadline_seconds
        if not outcome.retryable:  # case 7.4
            return self._fail(attempt, termination.last_line(attempt.message) or end)
        if outcome.consumes_retry and (self.job.status.restarts or 0) >= retries:  # case 7.5
            return self._fail(attempt, f"retry limit ({retries}) reached: {end}")
        if self.job.suspended:  # case 7.6
            message = "suspended; set spec.suspend to false to resume from the last checkpoint"
            return self._update_status("Suspended", message, attempt, **self._reported_fields())
        if deadline is not None and (self.job.status.active_seconds or 0) >= deadline:  # case 7.7
            return self._fail_on_deadline(attempt, deadline)
        backoff = self._remaining_backoff(attempt)
        if self.recorded != attempt or backoff > 0:  # case 7.8
            message = f"attempt {self.number + 1} will resume from the last checkpoint: {end}"
            actions = self._update_status("Restarting", message, attempt, **self._reported_fields())
            return actions.requeue_within(max(0.0, backoff))
        return self._start(self.number + 1)  # case 7.9

    def _end_time(self, attempt: AttemptStatus) -> datetime:
        """End time if status does not record one; for a deleted Job, the last progress is the best estimate."""
        if self.attempt_job is not None and self.attempt_job.finished_at is not None:
            return self.attempt_job.finished_at
        progress = self._scraped_fields().get("progress") or self.job.status.progress
        observed = progress.observed_time if progress else None
        return observed if observed and attempt.start_time and observed >= attempt.start_time else self.now

    def _remaining_backoff(self, attempt: AttemptStatus) -> float:
        """Seconds until the next attempt: doubled by each short attempt in a row, 0 after a suspension."""
        if attempt.reason == termination.SUSPENDED.reason:
            return 0.0
        short_attempts = 0
        for it in reversed(with_attempt(self.job.status, attempt)):
            lasted = (it.end_time - it.start_time).total_seconds() if it.start_time and it.end_time else 0.0
            if it.reason == termination.SUSPENDED.reason or lasted >= BACKOFF_RESET_SECONDS:
                break
            short_attempts += 1
        base = self.spec.retry.backoff_seconds
        backoff = min(max(MAX_BACKOFF_SECONDS, base), base * 2.0 ** max(0, short_attempts - 1))
        return backoff - (self.now - (attempt.end_time or self.now)).total_seconds()

    # Status.

    def _fail_on_deadline(self, attempt: AttemptStatus, limit: int) -> Actions:
        message = (
            f"spec.activeDeadlineSeconds ({limit}) exceeded by the total time of all attempts; "
            "recreate the job with a higher value, or without it"
        )
        reason = termination.DEADLINE_EXCEEDED.reason
        return self._update_status("Failed", message, attempt, reason=reason, **self._reported_fields())

    def _fail(self, attempt: AttemptStatus, message: str) -> Actions:
        changes = self._reported_fields()
        changes["completion_time"] = attempt.end_time
        return self._update_status("Failed", message, attempt, reason=attempt.reason or CRASHED.reason, **changes)

    def _reported_fields(self) -> StatusChanges:
        """What the trainer exported last, overridden by its final report."""
        return self._scraped_fields() | status_fields(termination.final_report(self.pods))

    def _scraped_fields(self) -> StatusChanges:
        snapshot = self.children.snapshot
        if snapshot is None or snapshot.attempt_number != self.number:
            return {}
        fields = status_fields(snapshot)
        if checkpoint := fields.get("checkpoint"):
            path = f"{self.parsed.destination.rstrip('/')}/{CHECKPOINTS_FOLDER}/{self.job.uid}"
            fields["checkpoint"] = CheckpointStatus(step=checkpoint.step, path=path, time=checkpoint.time)
        return fields

    def _update_status(
        self,
        state: State,
        message: str,
        current: AttemptStatus | None = None,
        *,
        reason: str = "",
        **changes: Unpack[StatusChanges],
    ) -> Actions:
        status = self.job.status
        if current is not None:
            changes["attempts"] = with_attempt(status, current)
            if status.start_time is None:
                changes["start_time"] = changes["attempts"][0].start_time
            changes |= active_deadline.active_time_fields(status, self.attempt_job, current, self.now)
        return _status_update(self.job, ConditionUpdate(state, message, reason), self.now, **changes)
