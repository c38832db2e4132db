"""What is to be done about one FineTuneJob: the words in which `reconcile` speaks to `apply`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.status import JobStatus

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Create:
    """Create an object.

    Args:
        shared: it belongs to nobody; when it is there already, whoever made it, that is as good.
    """

    resource: Literal["persistentvolumeclaims", "configmaps", "jobs"]
    manifest: Manifest
    shared: bool = False


@dataclass(frozen=True)
class Delete:
    """Delete an object, a Kubernetes Job with its pods, if it is still this very one."""

    name: str
    uid: str
    resource: Literal["jobs", "configmaps"] = "jobs"


@dataclass(frozen=True)
class Event:
    """Something for `kubectl describe`, said once."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Look:
    """What has to be looked up before a decision.

    Args:
        claims: an attempt needs these claims.
        configmaps: it needs these ConfigMaps.
        keys: it needs these (ConfigMap, key) pairs.
        leavings: ConfigMaps of attempts that may be there still.
    """

    claims: tuple[str, ...] = ()
    configmaps: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()
    leavings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Done in this order: `creates`, then `status`, then `deletes`, then `events`.

    Args:
        status: the status wanted; None leaves it as it is.
        look: answer this first, then reconcile again.
        requeue_after: seconds until somebody should look again without being told.
    """

    creates: tuple[Create, ...] = ()
    status: JobStatus | None = None
    deletes: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = ()
    look: Look | None = None
    requeue_after: float | None = None
