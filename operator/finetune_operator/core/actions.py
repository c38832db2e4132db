"""The result of reconciling one FineTuneJob: writes for `client.apply` to carry out, and when to reconcile again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.status import JobStatus
from finetune_operator.core.children import AttemptJob
from finetune_operator.core.objects import JsonObject


@dataclass(frozen=True)
class Create:
    """Create an object.

    Args:
        accept_existing: an object that already has this name counts as created, regardless of its owner.
    """

    resource: Literal["persistentvolumeclaims", "configmaps", "jobs"]
    body: JsonObject
    accept_existing: bool = False


@dataclass(frozen=True)
class Delete:
    """Delete an object and its dependents, unless its UID has changed."""

    resource: Literal["jobs", "configmaps"]
    name: str
    uid: str


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about the FineTuneJob."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Lookup:
    """What to read from the API server before deciding: the cache does not hold it, or may be stale.

    The Jobs and pods of the FineTuneJob are always read too.

    Args:
        claims: PersistentVolumeClaims that must exist.
        config_maps: ConfigMaps that must exist.
        config_map_keys: (ConfigMap, key) pairs that must exist.
        leftover_config_maps: ConfigMaps of finished attempts that may still exist.
    """

    claims: tuple[str, ...] = ()
    config_maps: tuple[str, ...] = ()
    config_map_keys: tuple[tuple[str, str], ...] = ()
    leftover_config_maps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Actions:
    """Carried out in this order: `creates`, `status`, `deletes`, `events`.

    Args:
        status: the desired status; None leaves it unchanged.
        lookup: read this first, then reconcile again; nothing else is set.
        requeue_after: seconds until the job is reconciled again even if nothing changes.
    """

    creates: tuple[Create, ...] = ()
    status: JobStatus | None = None
    deletes: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = ()
    lookup: Lookup | None = None
    requeue_after: float | None = None

    def requeue_within(self, seconds: float) -> Actions:
        """The same, reconciled again after at most this time."""
        earlier = seconds if self.requeue_after is None else min(seconds, self.requeue_after)
        return replace(self, requeue_after=earlier)

    def deleting(self, *jobs: AttemptJob) -> Actions:
        """The same, and delete these Jobs."""
        deletes = tuple(Delete("jobs", job.name, job.uid) for job in jobs if not job.deleting)
        return replace(self, deletes=self.deletes + deletes)
