"""The objects that belong to a FineTuneJob, reduced to what reconciling needs: Jobs, pods, ConfigMaps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.names import ATTEMPT_LABEL, JOB_LABEL, METRICS_PORT_NAME, TRAINER_CONTAINER
from finetune_operator.core.objects import (
    JsonObject,
    NamespacedName,
    ReasonMessage,
    controller_uid,
    parse_time,
    true_conditions,
    true_since,
)
from finetune_operator.core.progress import ProgressSnapshot


@dataclass(frozen=True)
class AttemptJob:
    """The Kubernetes Job of one attempt.

    Args:
        suspended: `spec.suspend`, which only the queue changes.
        failed: the condition Failed, which is set once every pod is terminal.
        finished_at: when it completed or failed.
        started_at: when it was last started or resumed; None while it is suspended.
        suspended_at: when it was last suspended; None unless it is suspended.
    """

    name: str
    uid: str
    owner_uid: str
    attempt_number: int
    resource_version: str
    created_at: datetime
    suspended: bool
    deleting: bool
    complete: bool
    failed: ReasonMessage | None
    finished_at: datetime | None = None
    started_at: datetime | None = None
    suspended_at: datetime | None = None

    @classmethod
    def from_object(cls, obj: JsonObject) -> AttemptJob:
        """Read a Job as the API server returns it."""
        metadata, status = obj["metadata"], obj.get("status") or {}
        conditions = true_conditions(status)
        # Just after it was resumed, a Job still has the start time of its earlier run.
        started_at = status.get("startTime") if "Suspended" not in conditions else None
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            owner_uid=controller_uid(obj),
            attempt_number=_attempt_number(metadata),
            resource_version=metadata.get("resourceVersion", ""),
            created_at=parse_time(metadata["creationTimestamp"]),
            suspended=obj.get("spec", {}).get("suspend") is True,
            deleting="deletionTimestamp" in metadata,
            complete="Complete" in conditions,
            failed=conditions.get("Failed"),
            finished_at=true_since(status, "Complete") or true_since(status, "Failed"),
            started_at=parse_time(started_at) if started_at else None,
            suspended_at=true_since(status, "Suspended"),
        )

    @property
    def finished(self) -> bool:
        return self.complete or self.failed is not None


@dataclass(frozen=True)
class TerminatedState:
    """How the trainer container terminated."""

    exit_code: int
    oom_killed: bool
    message: str
    finished_at: datetime | None

    @classmethod
    def from_json(cls, terminated: JsonObject) -> TerminatedState:
        finished_at = terminated.get("finishedAt")
        return cls(
            exit_code=terminated["exitCode"],
            oom_killed=terminated.get("reason") == "OOMKilled",
            message=terminated.get("message", ""),
            finished_at=parse_time(finished_at) if finished_at else None,
        )


@dataclass(frozen=True)
class TrainerPod:
    """One trainer pod.

    Args:
        rank: its completion index in the Indexed Job.
        running, waiting, terminated: state of the trainer container.
        unschedulable: message of the condition PodScheduled while the scheduler finds no node.
        status_reason: why the kubelet evicted or rejected the pod, such as `Evicted` or `OutOfcpu`.
        disruption: reason of the condition DisruptionTarget, such as `PreemptionByScheduler`.
        scheduled_at: when it was assigned to a node.
        deleted: it no longer exists; kept until its end is written to status.
    """

    name: str
    owner_uid: str
    attempt_number: int
    rank: int
    resource_version: str
    created_at: datetime
    phase: str
    ip: str
    metrics_port: int | None
    image: str
    memory_limit: str
    running: bool
    waiting: ReasonMessage | None
    terminated: TerminatedState | None
    unschedulable: str
    status_reason: ReasonMessage | None
    disruption: str
    scheduled_at: datetime | None = None
    deleted: bool = False

    @classmethod
    def from_object(cls, obj: JsonObject) -> TrainerPod:
        """Read a pod as the API server returns it."""
        metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
        container = _trainer_container(spec.get("containers"))
        state = _trainer_container(status.get("containerStatuses")).get("state") or {}
        disruption = true_conditions(status).get("DisruptionTarget")
        return cls(
            name=metadata["name"],
            owner_uid=controller_uid(obj),
            attempt_number=_attempt_number(metadata),
            rank=int(metadata.get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0)),
            resource_version=metadata.get("resourceVersion", ""),
            created_at=parse_time(metadata["creationTimestamp"]),
            phase=status.get("phase", "Pending"),
            ip=status.get("podIP", ""),
            metrics_port=_metrics_port(container),
            image=container.get("image", ""),
            memory_limit=container.get("resources", {}).get("limits", {}).get("memory", ""),
            running="running" in state,
            waiting=ReasonMessage.from_json(state["waiting"]) if "waiting" in state else None,
            terminated=TerminatedState.from_json(state["terminated"]) if "terminated" in state else None,
            unschedulable=_unschedulable(status),
            status_reason=ReasonMessage.from_json(status) if status.get("reason") else None,
            disruption=disruption.reason if disruption else "",
            scheduled_at=true_since(status, "PodScheduled"),
        )

    @property
    def terminal(self) -> bool:
        """Whether none of its containers runs or will run again."""
        return self.deleted or self.phase in ("Succeeded", "Failed")

    @property
    def evicted(self) -> bool:
        return self.status_reason is not None and self.status_reason.reason == "Evicted"


@dataclass(frozen=True)
class LeftoverConfigMap:
    """A ConfigMap of a finished attempt."""

    name: str
    uid: str
    owner_uid: str

    @classmethod
    def from_object(cls, obj: JsonObject) -> LeftoverConfigMap:
        return cls(obj["metadata"]["name"], obj["metadata"]["uid"], controller_uid(obj))


@dataclass(frozen=True)
class Children:
    """The objects labeled with one FineTuneJob; not all of them need to be owned by it.

    Args:
        missing_references: objects that an attempt needs and that do not exist, one phrase each; None before a Lookup.
        leftover_config_maps: ConfigMaps of finished attempts; None before a Lookup.
        snapshot: latest progress of the trainer.
    """

    jobs: tuple[AttemptJob, ...] = ()
    pods: tuple[TrainerPod, ...] = ()
    missing_references: tuple[str, ...] | None = None
    leftover_config_maps: tuple[LeftoverConfigMap, ...] | None = None
    snapshot: ProgressSnapshot | None = None

    def attempt_job(self, number: int) -> AttemptJob | None:
        return next((job for job in self.jobs if job.attempt_number == number), None)

    def pods_of(self, number: int) -> tuple[TrainerPod, ...]:
        """The pods of an attempt: existing ones first, then by rank."""
        pods = (pod for pod in self.pods if pod.attempt_number == number)
        return tuple(sorted(pods, key=lambda pod: (pod.deleted, pod.rank, pod.name)))

    @property
    def active(self) -> bool:
        """Whether any Job is unfinished or any pod may still run, of any attempt."""
        return any(not job.finished for job in self.jobs) or any(not pod.terminal for pod in self.pods)


def labeled_job(obj: JsonObject) -> NamespacedName | None:
    """The FineTuneJob that an object's label names."""
    metadata = obj["metadata"]
    name = metadata.get("labels", {}).get(JOB_LABEL)
    return NamespacedName(metadata["namespace"], name) if name else None


def _attempt_number(metadata: JsonObject) -> int:
    text = metadata.get("labels", {}).get(ATTEMPT_LABEL, "")
    return int(text) if text.isdigit() else 0


def _trainer_container(containers: list[JsonObject] | None) -> JsonObject:
    return next((it for it in containers or [] if it["name"] == TRAINER_CONTAINER), {})


def _metrics_port(container: JsonObject) -> int | None:
    ports = container.get("ports") or []
    return next((port["containerPort"] for port in ports if port.get("name") == METRICS_PORT_NAME), None)


def _unschedulable(status: JsonObject) -> str:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return str(condition.get("message", ""))
    return ""
