"""A simulated cluster with one FineTuneJob: actions are applied as the API server and the Job controller would.

For tests of the pure core only; how the real components behave is tested against the real ones.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.status import AttemptStatus, Condition, JobStatus
from finetune_operator.config import Config
from finetune_operator.core.actions import Actions, Create, Delete
from finetune_operator.core.children import AttemptJob, Children, LeftoverConfigMap, TerminatedState, TrainerPod
from finetune_operator.core.objects import ReasonMessage
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.reconcile import reconcile

START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "model": {"source": "hf://org/model"},
    "data": {"train": {"source": "hf://org/data"}},
    "resources": {"gpusPerNode": 0, "memory": "2Gi"},
    "retry": {"limit": 2, "backoffSeconds": 10},
}


def make_job(name: str = "job", status: dict[str, Any] | None = None, **spec: Any) -> ObservedJob:
    """A FineTuneJob as the API server returns it."""
    return ObservedJob.from_object(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": "default", "uid": "uid-1", "generation": 1, "resourceVersion": "1"},
            "spec": SPEC | spec,
            "status": status or {"observedGeneration": -1},
        }
    )


def make_attempt_job(number: int = 1, **changes: Any) -> AttemptJob:
    """The Job of an attempt, active since START."""
    job = AttemptJob(
        name=f"job-a{number}", uid=f"uid-a{number}", owner_uid="uid-1", attempt_number=number, resource_version="1",
        created_at=START, suspended=False, deleting=False, complete=False, failed=None, started_at=START,
    )  # fmt: skip
    return replace(job, **changes)


def make_pod(number: int = 1, **changes: Any) -> TrainerPod:
    """The pending pod of an attempt."""
    pod = TrainerPod(
        name=f"job-a{number}-0", owner_uid=f"uid-a{number}",
        attempt_number=number, rank=0, resource_version="1", created_at=START, phase="Pending",
        ip="", metrics_port=9090, image="trainer:1", memory_limit="2Gi", running=False, waiting=None, terminated=None,
        unschedulable="", status_reason=None, disruption="",
    )  # fmt: skip
    return replace(pod, **changes)


def running(pod: TrainerPod) -> TrainerPod:
    """The pod with its trainer running."""
    return replace(pod, phase="Running", running=True, ip="10.0.0.1", waiting=None)


def terminated(pod: TrainerPod, exit_code: int, message: str = "", **changes: Any) -> TrainerPod:
    """The pod with its trainer terminated."""
    phase = "Failed" if exit_code else "Succeeded"
    finished_at = changes.pop("finished_at", START)
    state = TerminatedState(exit_code, changes.pop("oom_killed", False), message, finished_at)
    return replace(pod, phase=phase, running=False, waiting=None, terminated=state, **changes)


class Simulation:
    """One FineTuneJob and its children; `created` lists every Job that was ever created, by name."""

    def __init__(self, **spec: Any) -> None:
        self.job = make_job(**spec)
        self.config = Config()
        self.now = START
        self.missing: tuple[str, ...] = ()
        self.attempt_jobs: dict[int, AttemptJob] = {}
        self.pods: dict[int, TrainerPod] = {}
        self.created: list[str] = []
        self.config_maps: set[str] = set()
        self.pod_seconds = 0.0

    @property
    def children(self) -> Children:
        """The children as in the cache."""
        return Children(tuple(self.attempt_jobs.values()), tuple(self.pods.values()))

    @property
    def conditions(self) -> dict[str, Condition]:
        return {it.type: it for it in self.job.status.conditions}

    @property
    def condition_statuses(self) -> dict[str, str]:
        return {it.type: it.status for it in self.job.status.conditions}

    @property
    def message(self) -> str:
        return self.conditions["Succeeded"].message

    @property
    def stalled_reason(self) -> str:
        return self.conditions["Stalled"].reason

    @property
    def attempts(self) -> list[AttemptStatus]:
        return self.job.status.attempts or []

    # The operator.

    def reconcile_cached(self) -> Actions:
        """The actions of one reconciliation without a lookup, which are not carried out."""
        return reconcile(self.job, self.children, self.now, self.config)

    def reconcile(self) -> Actions:
        """The actions of one reconciliation with its lookup, which are not carried out."""
        actions = self.reconcile_cached()
        if actions.lookup is None:
            return actions
        names = [it for it in actions.lookup.leftover_config_maps if it in self.config_maps]
        leftovers = tuple(LeftoverConfigMap(it, f"uid-{it}", "uid-1") for it in names)
        children = replace(self.children, missing_references=self.missing, leftover_config_maps=leftovers)
        return reconcile(self.job, children, self.now, self.config)

    def step(self, writes: int | None = None) -> Actions:
        """Reconcile once; only this number of writes is carried out before the operator dies."""
        actions = self.reconcile()
        steps: list[Create | JobStatus | Delete] = [*actions.creates]
        steps += [*([actions.status] if actions.status else []), *actions.deletes]
        for step in steps[:writes]:
            self._carry_out(step)
        return actions

    def settle(self) -> Actions:
        """Reconcile until there is nothing left to do."""
        for _ in range(20):
            actions = self.step()
            if not (actions.creates or actions.status or actions.deletes):
                return actions
        raise AssertionError(f"does not settle: {actions}")

    def _carry_out(self, step: Create | JobStatus | Delete) -> None:
        if isinstance(step, JobStatus):
            self.job = replace(self.job, status=JobStatus.model_validate(step.manifest()))
        elif isinstance(step, Delete) and step.resource == "configmaps":
            self.config_maps.discard(step.name)
        elif isinstance(step, Delete):
            self.attempt_jobs = {number: it for number, it in self.attempt_jobs.items() if it.uid != step.uid}
        elif step.resource == "jobs":
            self._create_job(step.body)
        elif step.resource == "configmaps":
            self.config_maps.add(step.body["metadata"]["name"])

    def _create_job(self, body: dict[str, Any]) -> None:
        number = int(body["metadata"]["name"].rpartition("-a")[2])
        if number in self.attempt_jobs:
            return
        self.created.append(body["metadata"]["name"])
        self.attempt_jobs[number] = make_attempt_job(number, created_at=self.now, started_at=self.now)
        self.pods[number] = make_pod(number, created_at=self.now)

    # The cluster.

    def active_pod(self) -> TrainerPod | None:
        return next((pod for pod in self.pods.values() if not pod.terminal), None)

    def run(self) -> None:
        """The trainer starts."""
        if pod := self.active_pod():
            self.pods[pod.attempt_number] = running(pod)

    def exit(self, code: int, **changes: Any) -> None:
        """The trainer terminates."""
        if pod := self.active_pod():
            self.pods[pod.attempt_number] = terminated(pod, code, finished_at=self.now, **changes)

    def run_job_controller(self) -> None:
        """The Job controller sets Complete or Failed on Jobs whose pods are terminal."""
        for number, job in self.attempt_jobs.items():
            pod = self.pods.get(number)
            if job.finished or pod is None or not pod.terminal:
                continue
            complete = pod.terminated is not None and pod.terminated.exit_code == 0
            reason = ReasonMessage("BackoffLimitExceeded", "Job has reached the specified backoff limit")
            failed = None if complete else reason
            self.attempt_jobs[number] = replace(job, complete=complete, failed=failed, finished_at=self.now)

    def delete_terminal_pods(self) -> None:
        """Pods are garbage collected, but never before the Job controller has counted them."""
        uncounted = {number for number, job in self.attempt_jobs.items() if not job.finished}
        self.pods = {number: pod for number, pod in self.pods.items() if not pod.terminal or number in uncounted}

    def set_admitted(self, admitted: bool) -> None:
        """Kueue admits the Job, or evicts it: its pods are deleted."""
        for number, job in self.attempt_jobs.items():
            if job.finished or job.suspended != admitted:
                continue
            if admitted:
                self.pods[number] = make_pod(number, created_at=self.now)
                self.attempt_jobs[number] = replace(job, suspended=False, suspended_at=None, started_at=self.now)
            else:
                self.pods.pop(number, None)
                self.attempt_jobs[number] = replace(job, suspended=True, suspended_at=self.now, started_at=None)

    def wait(self, seconds: float) -> None:
        """Time passes; `pod_seconds` is the total of the time with an active pod."""
        if self.active_pod():
            self.pod_seconds += seconds
        self.now += timedelta(seconds=seconds)

    # The user.

    def delete_job(self) -> None:
        """Delete the Job of the current attempt, once the operator has seen it; its pod keeps running for a while."""
        number = max(self.attempt_jobs, default=0)
        attempt = self.job.attempt(number)
        if attempt is not None and attempt.start_time is not None:
            del self.attempt_jobs[number]

    def set_suspend(self, suspend: bool) -> None:
        self.set_spec(suspend=suspend)

    def set_spec(self, **fields: Any) -> None:
        """Change the spec, and with it the generation."""
        status = self.job.status.manifest()
        changed = make_job(status=status, **self.job.spec | fields)
        self.job = replace(changed, generation=self.job.generation + 1)


def started(**spec: Any) -> Simulation:
    """A job whose first attempt is running."""
    sim = Simulation(**spec)
    sim.settle()
    sim.run()
    sim.settle()
    return sim
