"""The only module that writes to the cluster: it carries out a plan, in the plan's order.

Every write can be repeated. A create that finds its object there already has succeeded if the object is ours, which its
controller's UID tells; a status is written only over the very version it was computed from.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from finetune_api.names import API_VERSION, JOB_KIND, JOB_LABEL, JOB_PLURAL
from finetune_operator.client.cluster import ApiError, Cluster, job_path, path_of
from finetune_operator.core.actions import Create, Delete, Event, Plan
from finetune_operator.core.children import controller_uid
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.status import merge_patch

REPORTER = "finetune.dev/operator"

OnWrite = Callable[[str, dict[str, Any]], object]
"""Called with the resource and the object as the API server returned it."""


class RefusedError(Exception):
    """The API server will not have an object; somebody has to change something first."""


class OutdatedError(Exception):
    """The job has changed, or is gone, since the plan was made."""


class InTheWayError(Exception):
    """An object of an earlier job of the same name is not gone yet."""


async def apply(plan: Plan, job: ObservedJob, cluster: Cluster, on_write: OnWrite) -> None:
    """Carry out a plan.

    Raises:
        RefusedError: an object was refused, or its name is taken by somebody else.
        OutdatedError: the job is not any more what the plan was made for.
        InTheWayError: what is left of an earlier job has to go first.
        ApiError: anything else; the plan may be carried out in part, and reconciling again goes on from there.
    """
    for create in plan.creates:
        await _create(create, job, cluster, on_write)
    if plan.status is not None:
        await _write_status(plan, job, cluster, on_write)
    for delete in plan.deletes:
        await _delete(delete, job, cluster)
    for event in plan.events:
        await _tell(event, job, cluster)


async def _create(create: Create, job: ObservedJob, cluster: Cluster, on_write: OnWrite) -> None:
    try:
        made = await cluster.post(path_of(create.resource, job.key.namespace), create.manifest)
    except ApiError as error:
        if error.conflict and error.reason == "AlreadyExists":
            made = await _existing(create, job, cluster)
        elif error.refusal:
            raise RefusedError(f"the API server refused {_named(create)}: {error}") from error
        else:
            raise
    if create.resource == "jobs":
        on_write("jobs", made)


async def _existing(create: Create, job: ObservedJob, cluster: Cluster) -> dict[str, Any]:
    """The object that is there already, if it is as good as the one we wanted to create."""
    name = create.manifest["metadata"]["name"]
    found = await cluster.get(path_of(create.resource, job.key.namespace, name))
    if create.shared or controller_uid(found) == job.uid:
        return found
    if found["metadata"].get("labels", {}).get(JOB_LABEL) == job.key.name:
        raise InTheWayError(f"{_named(create)} of an earlier job of this name is not gone yet")
    raise RefusedError(f"{_named(create)} exists and belongs to somebody else: delete it, or name the job differently")


async def _write_status(plan: Plan, job: ObservedJob, cluster: Cluster, on_write: OnWrite) -> None:
    assert plan.status is not None
    patch = merge_patch(job.status, plan.status)
    if not patch:
        return
    body = {"metadata": {"resourceVersion": job.resource_version, "uid": job.uid}, "status": patch}
    try:
        on_write(JOB_PLURAL, await cluster.merge(f"{job_path(job.key)}/status", body))
    except ApiError as error:
        if error.conflict or error.not_found:
            raise OutdatedError from error
        raise


async def _delete(delete: Delete, job: ObservedJob, cluster: Cluster) -> None:
    """Without a propagation policy the pods of a deleted Job would go on training."""
    options = {"propagationPolicy": "Background", "preconditions": {"uid": delete.uid}}
    try:
        await cluster.delete(path_of(delete.resource, job.key.namespace, delete.name), options)
    except ApiError as error:
        if not (error.not_found or error.conflict):
            raise


async def _tell(event: Event, job: ObservedJob, cluster: Cluster) -> None:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{job.key.name}-", "namespace": job.key.namespace},
        "eventTime": now,
        "type": event.kind,
        "reason": event.reason,
        "note": event.message.encode()[:1024].decode(errors="ignore"),
        "action": "Reconcile",
        "reportingController": REPORTER,
        "reportingInstance": socket.gethostname()[:128],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "name": job.key.name,
            "namespace": job.key.namespace,
            "uid": job.uid,
        },
    }
    await cluster.post(path_of("events", job.key.namespace), body)


def _named(create: Create) -> str:
    return f"{create.manifest['kind']} {create.manifest['metadata']['name']}"
