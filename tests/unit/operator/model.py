"""A cluster small enough to think about: it applies plans the way the API server and the Job controller would.

Only for tests of the pure core; how the real ones behave is tested against the real ones.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.status import JobStatus
from finetune_operator.config import Config
from finetune_operator.core.actions import Actions, Delete
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
    """A FineTuneJob as the API server would give it."""
    return ObservedJob.from_object(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": "default", "uid": "uid-1", "generation": 1, "resourceVersion": "1"},
            "spec": SPEC | spec,
            "status": status or {"observedGeneration": -1},
        }
    )


def make_attempt(number: int = 1, **changes: Any) -> AttemptJob:
    attempt = AttemptJob(
        name=f"job-a{number}", uid=f"uid-a{number}", owner_uid="uid-1", attempt_number=number, resource_version="1",
        created_at=START, suspended=False, deleting=False, complete=False, failed=None, started_at=START,
    )  # fmt: skip
    return replace(attempt, **changes)


def make_pod(number: int = 1, **changes: Any) -> TrainerPod:
    pod = TrainerPod(
        name=f"job-a{number}-0", owner_uid=f"uid-a{number}",
        attempt_number=number, rank=0, resource_version="1", created_at=START, phase="Pending",
        ip="", metrics_port=9090, image="trainer:1", memory_limit="2Gi", running=False, waiting=None, terminated=None,
        unschedulable="", status_reason=None, disruption="",
    )  # fmt: skip
    return replace(pod, **changes)


def running(pod: TrainerPod) -> TrainerPod:
    return replace(pod, phase="Running", running=True, ip="10.0.0.1", waiting=None)


def ended(pod: TrainerPod, code: int, message: str = "", **changes: Any) -> TrainerPod:
    phase = "Failed" if code else "Succeeded"
    finished_at = changes.pop("finished_at", START)
    terminated = TerminatedState(code, changes.pop("oom_killed", False), message, finished_at)
    return replace(pod, phase=phase, running=False, waiting=None, terminated=terminated, **changes)


class Model:
    """One FineTuneJob and its children; `created` counts every Job ever made, by name."""

    def __init__(self, **spec: Any) -> None:
        self.job = make_job(**spec)
        self.config = Config()
        self.now = START
        self.missing: tuple[str, ...] = ()
        self.attempts: dict[int, AttemptJob] = {}
        self.pods: dict[int, TrainerPod] = {}
        self.created: list[str] = []
        self.configmaps: set[str] = set()
        self.ran = 0.0

    def reconcile(self) -> Actions:
        children = Children(tuple(self.attempts.values()), tuple(self.pods.values()))
        actions = reconcile(self.job, children, self.now, self.config)
        if actions.lookup is not None:
            names = [it for it in actions.lookup.leftover_config_maps if it in self.configmaps]
            leftovers = tuple(LeftoverConfigMap(it, f"uid-{it}", "uid-1") for it in names)
            children = replace(children, missing_references=self.missing, leftover_config_maps=leftovers)
            actions = reconcile(self.job, children, self.now, self.config)
        return actions

    def step(self, writes: int | None = None) -> Actions:
        """Reconcile once; only the first so many writes are carried out before the operator dies."""
        actions = self.reconcile()
        steps: list[Any] = [*actions.creates, *([actions.status] if actions.status else []), *actions.deletes]
        for step in steps[:writes]:
            self._carry_out(step)
        return actions

    def settle(self) -> Actions:
        """Reconcile until nothing is left to do."""
        for _ in range(20):
            actions = self.step()
            if not (actions.creates or actions.status or actions.deletes):
                return actions
        raise AssertionError(f"does not settle: {actions}")

    def _carry_out(self, step: Any) -> None:
        if isinstance(step, JobStatus):
            self.job = replace(self.job, status=JobStatus.model_validate(step.manifest()))
        elif isinstance(step, Delete) and step.resource == "configmaps":
            self.configmaps.discard(step.name)
        elif isinstance(step, Delete):
            number = next((it.attempt_number for it in self.attempts.values() if it.uid == step.uid), None)
            if number is not None:
                del self.attempts[number]
        elif step.resource == "jobs":
            self._create(step.body)
        elif step.resource == "configmaps":
            self.configmaps.add(step.body["metadata"]["name"])

    def _create(self, body: dict[str, Any]) -> None:
        number = int(body["metadata"]["name"].rpartition("-a")[2])
        if number in self.attempts:
            return
        self.created.append(body["metadata"]["name"])
        self.attempts[number] = make_attempt(number, created_at=self.now, started_at=self.now)
        self.pods[number] = make_pod(number, created_at=self.now)

    # What the cluster does.

    def live_pod(self) -> TrainerPod | None:
        return next((pod for pod in self.pods.values() if not pod.terminal), None)

    def run(self) -> None:
        if pod := self.live_pod():
            self.pods[pod.attempt_number] = running(pod)

    def end(self, code: int, **changes: Any) -> None:
        if pod := self.live_pod():
            self.pods[pod.attempt_number] = ended(pod, code, finished_at=self.now, **changes)

    def judge(self) -> None:
        """The Job controller notices that pods have ended."""
        for number, attempt in self.attempts.items():
            pod = self.pods.get(number)
            if attempt.finished or pod is None or not pod.terminal:
                continue
            done = pod.terminated is not None and pod.terminated.exit_code == 0
            failed = ReasonMessage("BackoffLimitExceeded", "Job has reached the specified backoff limit")
            self.attempts[number] = replace(
                attempt, complete=done, failed=None if done else failed, finished_at=self.now
            )

    def lose_pods(self) -> None:
        """Dead pods vanish, but never before the Job controller has counted them."""
        uncounted = {number for number, attempt in self.attempts.items() if not attempt.finished}
        self.pods = {number: pod for number, pod in self.pods.items() if not pod.terminal or number in uncounted}

    def delete_attempt(self) -> None:
        """Somebody deletes the Job by hand, once the operator has seen it; its pod goes on for a while."""
        number = max(self.attempts, default=0)
        record = self.job.attempt(number)
        if record is not None and record.start_time is not None:
            del self.attempts[number]

    def suspend(self, value: bool) -> None:
        self.change(suspend=value)

    def change(self, **fields: Any) -> None:
        """The user changes the spec."""
        status = self.job.status.manifest()
        changed = make_job(status=status, **self.job.spec | fields)
        self.job = replace(changed, generation=self.job.generation + 1)

    def queue(self, *, takes: bool) -> None:
        """Kueue takes the pods of a Job away, or admits it."""
        for number, attempt in self.attempts.items():
            if attempt.finished or attempt.suspended == takes:
                continue
            if takes:
                self.pods.pop(number, None)
                self.attempts[number] = replace(attempt, suspended=True, suspended_at=self.now, started_at=None)
            else:
                self.pods[number] = make_pod(number, created_at=self.now)
                self.attempts[number] = replace(attempt, suspended=False, suspended_at=None, started_at=self.now)

    def wait(self, seconds: float) -> None:
        """Time goes by; `ran` adds up that of pods that are there."""
        if self.live_pod():
            self.ran += seconds
        self.now += timedelta(seconds=seconds)
