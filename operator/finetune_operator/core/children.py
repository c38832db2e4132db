"""What a FineTuneJob has brought into the world, as far as the operator cares: Kubernetes Jobs and their pods."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.names import ATTEMPT_LABEL, JOB_LABEL, METRICS_PORT_NAME, TRAINER_CONTAINER
from finetune_operator.core.observed import Key
from finetune_operator.core.progress import Reading


@dataclass(frozen=True)
class Said:
    """Why something is as it is, in Kubernetes' words."""

    reason: str
    message: str


@dataclass(frozen=True)
class AttemptJob:
    """The Kubernetes Job of one attempt."""

    name: str
    uid: str
    owner_uid: str
    number: int
    resource_version: str
    created: datetime
    suspended: bool
    deleting: bool
    complete: bool
    failed: Said | None
    """Set once every pod is terminal, never earlier."""
    ended: datetime | None = None
    """Since when it is complete or failed."""
    started: datetime | None = None
    """Since when its pods are wanted; None while they are not."""
    suspended_at: datetime | None = None

    @property
    def finished(self) -> bool:
        return self.complete or self.failed is not None


@dataclass(frozen=True)
class Leaving:
    """A ConfigMap of an attempt that is over."""

    name: str
    uid: str
    owner_uid: str


@dataclass(frozen=True)
class PodEnd:
    """How the trainer container ended."""

    exit_code: int
    oom_killed: bool
    message: str
    finished: datetime | None


@dataclass(frozen=True)
class TrainerPod:
    """One trainer pod.

    Args:
        gone: it has been deleted; what it said at the end is remembered until it is written down.
        scheduled: when a node was found for it.
        evicted: the kubelet's reason for throwing it out, such as `Evicted`.
        disruption: the cluster's reason for taking it away, such as `PreemptionByScheduler`.
    """

    name: str
    owner_uid: str
    number: int
    rank: int
    resource_version: str
    created: datetime
    phase: str
    address: str
    port: int | None
    image: str
    memory_limit: str
    running: bool
    waiting: Said | None
    unschedulable: str
    end: PodEnd | None
    evicted: Said | None
    disruption: str
    scheduled: datetime | None = None
    gone: bool = False

    @property
    def alive(self) -> bool:
        return not self.gone and self.phase not in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Children:
    """Everything that belongs to one FineTuneJob.

    Args:
        missing: what an attempt needs and does not find, in sentences; None when nobody has looked yet.
        leavings: what attempts have left; None when nobody has looked yet.
        reading: the trainer's latest progress.
    """

    jobs: tuple[AttemptJob, ...] = ()
    pods: tuple[TrainerPod, ...] = ()
    missing: tuple[str, ...] | None = None
    leavings: tuple[Leaving, ...] | None = None
    reading: Reading | None = None

    def job(self, number: int) -> AttemptJob | None:
        return next((job for job in self.jobs if job.number == number), None)

    def pods_of(self, number: int) -> tuple[TrainerPod, ...]:
        return tuple(
            sorted((pod for pod in self.pods if pod.number == number), key=lambda pod: (pod.gone, pod.rank, pod.name))
        )

    @property
    def busy(self) -> bool:
        """Whether anything still runs, of whatever attempt."""
        return any(not job.finished for job in self.jobs) or any(pod.alive for pod in self.pods)


def owner_key(raw: dict[str, Any]) -> Key | None:
    """The FineTuneJob a child is labelled with."""
    metadata = raw["metadata"]
    name = metadata.get("labels", {}).get(JOB_LABEL)
    return Key(metadata["namespace"], name) if name else None


def controller_uid(raw: dict[str, Any]) -> str:
    """UID of the object's controller owner; empty when it has none."""
    owners = raw["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def attempt_job(raw: dict[str, Any]) -> AttemptJob:
    """Read a Kubernetes Job."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    conditions = _true_conditions(status)
    return AttemptJob(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=controller_uid(raw),
        number=_number(metadata),
        resource_version=metadata.get("resourceVersion", ""),
        created=_time(metadata["creationTimestamp"]),
        suspended=raw.get("spec", {}).get("suspend") is True,
        deleting="deletionTimestamp" in metadata,
        complete="Complete" in conditions,
        failed=conditions.get("Failed"),
        ended=_true_since(status, "Complete") or _true_since(status, "Failed"),
        # Just after it was let go on, it still has the start time of its earlier run.
        started=_time(status["startTime"]) if status.get("startTime") and "Suspended" not in conditions else None,
        suspended_at=_true_since(status, "Suspended"),
    )


def trainer_pod(raw: dict[str, Any]) -> TrainerPod:
    """Read a pod."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    container = _trainer(spec.get("containers"))
    state = _trainer(status.get("containerStatuses")).get("state") or {}
    disruption = _true_conditions(status).get("DisruptionTarget")
    return TrainerPod(
        name=metadata["name"],
        owner_uid=controller_uid(raw),
        number=_number(metadata),
        rank=int(metadata.get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0)),
        resource_version=metadata.get("resourceVersion", ""),
        created=_time(metadata["creationTimestamp"]),
        phase=status.get("phase", "Pending"),
        address=status.get("podIP", ""),
        port=_metrics_port(container),
        image=container.get("image", ""),
        memory_limit=container.get("resources", {}).get("limits", {}).get("memory", ""),
        running="running" in state,
        waiting=_said(state["waiting"]) if "waiting" in state else None,
        unschedulable=_unschedulable(status),
        end=_end(state["terminated"]) if "terminated" in state else None,
        evicted=_said(status) if status.get("reason") else None,
        disruption=disruption.reason if disruption else "",
        scheduled=_true_since(status, "PodScheduled"),
    )


def _trainer(containers: list[dict[str, Any]] | None) -> dict[str, Any]:
    return next((it for it in containers or [] if it["name"] == TRAINER_CONTAINER), {})


def _metrics_port(container: dict[str, Any]) -> int | None:
    ports = container.get("ports") or []
    return next((port["containerPort"] for port in ports if port.get("name") == METRICS_PORT_NAME), None)


def _end(terminated: dict[str, Any]) -> PodEnd:
    finished = terminated.get("finishedAt")
    return PodEnd(
        exit_code=terminated["exitCode"],
        oom_killed=terminated.get("reason") == "OOMKilled",
        message=terminated.get("message", ""),
        finished=_time(finished) if finished else None,
    )


def _true_since(status: dict[str, Any], condition: str) -> datetime | None:
    """When a condition became true; None while it is not."""
    conditions = status.get("conditions") or []
    found = (it for it in conditions if it["type"] == condition and it["status"] == "True")
    return next((_time(it["lastTransitionTime"]) for it in found if it.get("lastTransitionTime")), None)


def _unschedulable(status: dict[str, Any]) -> str:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return str(condition.get("message", ""))
    return ""


def _true_conditions(status: dict[str, Any]) -> dict[str, Said]:
    return {it["type"]: _said(it) for it in status.get("conditions") or [] if it["status"] == "True"}


def _said(part: dict[str, Any]) -> Said:
    return Said(part.get("reason", ""), part.get("message", ""))


def _number(metadata: dict[str, Any]) -> int:
    text = metadata.get("labels", {}).get(ATTEMPT_LABEL, "")
    return int(text) if text.isdigit() else 0


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
