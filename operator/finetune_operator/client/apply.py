"""Carries out the actions of a reconciliation; the only module that writes to the cluster, except for the Lease.

Every write can be repeated. Creating an object that exists already succeeds if the FineTuneJob controls that object; a
status is written only over the version that it was computed from.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_api.names import API_VERSION, JOB_KIND, JOB_LABEL, JOB_PLURAL
from finetune_operator.client.kube_client import ApiError, KubeClient, job_path, resource_path
from finetune_operator.core.actions import Actions, Create, Delete, Event
from finetune_operator.core.objects import JsonObject, controller_uid
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.status import merge_patch

REPORTING_CONTROLLER = "finetune.dev/operator"

OnWrite = Callable[[str, JsonObject], object]
"""Called with the resource and the object as the API server returned it."""


class ApplyError(Exception):
    """The actions were not carried out, or only in part."""


class RejectedError(ApplyError):
    """The API server rejected an object, or its name is taken; retrying is useless until someone changes something."""


class ConflictError(ApplyError):
    """The FineTuneJob was changed or deleted after it was read."""


class AlreadyExistsError(ApplyError):
    """An object of an earlier FineTuneJob of the same name still exists, and will be garbage collected."""


async def apply(actions: Actions, job: ObservedJob, client: KubeClient, on_write: OnWrite) -> None:
    """Carry out actions.

    Raises:
        RejectedError, ConflictError, AlreadyExistsError: see there.
        ApiError: any other error; the actions may be partly done, and the next reconciliation continues from there.
    """
    for create in actions.creates:
        await _create(create, job, client, on_write)
    if actions.status is not None:
        await _update_status(actions, job, client, on_write)
    for delete in actions.deletes:
        await _delete(delete, job, client)
    for event in actions.events:
        await _emit_event(event, job, client)


async def _create(create: Create, job: ObservedJob, client: KubeClient, on_write: OnWrite) -> None:
    try:
        created = await client.create(resource_path(create.resource, job.key.namespace), create.body)
    except ApiError as error:
        if error.is_already_exists:
            created = await _existing(create, job, client)
        elif error.is_rejection:
            raise RejectedError(f"API server rejected {_describe(create)}: {error}") from error
        else:
            raise
    if create.resource == "jobs":
        on_write("jobs", created)


async def _existing(create: Create, job: ObservedJob, client: KubeClient) -> JsonObject:
    """The object that has this name already, if it can be used."""
    existing = await client.get(resource_path(create.resource, job.key.namespace, create.body["metadata"]["name"]))
    if create.accept_existing or controller_uid(existing) == job.uid:
        return existing
    if existing["metadata"].get("labels", {}).get(JOB_LABEL) == job.key.name:
        raise AlreadyExistsError(f"{_describe(create)} of an earlier FineTuneJob of this name is still being deleted")
    raise RejectedError(
        f"{_describe(create)} already exists and is not controlled by this FineTuneJob; "
        "delete it, or use another name for the FineTuneJob"
    )


async def _update_status(actions: Actions, job: ObservedJob, client: KubeClient, on_write: OnWrite) -> None:
    assert actions.status is not None
    patch = merge_patch(job.status, actions.status)
    if not patch:
        return
    body = {"metadata": {"resourceVersion": job.resource_version, "uid": job.uid}, "status": patch}
    try:
        on_write(JOB_PLURAL, await client.patch(f"{job_path(job.key)}/status", body))
    except ApiError as error:
        if error.is_conflict or error.is_not_found:
            raise ConflictError("the FineTuneJob was changed or deleted after it was read") from error
        raise


async def _delete(delete: Delete, job: ObservedJob, client: KubeClient) -> None:
    # Without a propagation policy, the API server orphans the pods of a Job, and they keep running.
    options = {"propagationPolicy": "Background", "preconditions": {"uid": delete.uid}}
    try:
        await client.delete(resource_path(delete.resource, job.key.namespace, delete.name), options)
    except ApiError as error:
        if not (error.is_not_found or error.is_conflict):
            raise


async def _emit_event(event: Event, job: ObservedJob, client: KubeClient) -> None:
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{job.key.name}-", "namespace": job.key.namespace},
        "eventTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "type": event.type,
        "reason": event.reason,
        # The API server limits a note to 1 kB.
        "note": event.message.encode()[:1024].decode(errors="ignore"),
        "action": "Reconcile",
        "reportingController": REPORTING_CONTROLLER,
        "reportingInstance": socket.gethostname()[:128],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "name": job.key.name,
            "namespace": job.key.namespace,
            "uid": job.uid,
        },
    }
    await client.create(resource_path("events", job.key.namespace), body)


def _describe(create: Create) -> str:
    return f"{create.body['kind']} {create.body['metadata']['name']}"
