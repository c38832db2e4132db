"""The state of the cluster as the watches reported it, reduced to what matters.

It is the operator's only memory, and it may be lost at any time: everything in it can be listed again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from finetune_api.names import JOB_PLURAL
from finetune_operator.core.children import AttemptJob, Children, TrainerPod, labeled_job
from finetune_operator.core.objects import JsonObject, NamespacedName
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.progress import ProgressSnapshot

logger = logging.getLogger(__name__)

Child = TypeVar("Child", AttemptJob, TrainerPod)


class Cache:
    """FineTuneJobs, and the Jobs and pods that are labeled with each."""

    def __init__(self) -> None:
        self.jobs: dict[NamespacedName, ObservedJob] = {}
        self.snapshots: dict[NamespacedName, ProgressSnapshot] = {}
        self._attempt_jobs: dict[NamespacedName, dict[str, AttemptJob]] = {}
        self._pods: dict[NamespacedName, dict[str, TrainerPod]] = {}

    def put(self, resource: str, obj: JsonObject) -> NamespacedName | None:
        """Store an object unless a newer version is stored. Returns the FineTuneJob to reconcile."""
        try:
            if resource == JOB_PLURAL:
                return self._put_job(ObservedJob.from_object(obj))
            return self._put_child(resource, obj)
        except (ValueError, KeyError, TypeError) as error:
            # Users can create pods with our labels; an object that cannot be parsed must not affect others.
            metadata = obj.get("metadata", {})
            name = f"{metadata.get('namespace')}/{metadata.get('name')}"
            logger.warning("ignoring %s %s, which cannot be parsed: %r", resource, name, error)
            return None

    def _put_job(self, job: ObservedJob) -> NamespacedName:
        known = self.jobs.get(job.key)
        if known is not None and known.uid != job.uid:
            self.snapshots.pop(job.key, None)
        elif known is not None and not _is_newer(job.resource_version, known.resource_version):
            return job.key
        self.jobs[job.key] = job
        return job.key

    def _put_child(self, resource: str, obj: JsonObject) -> NamespacedName | None:
        key = labeled_job(obj)
        if key is None:
            return None
        if resource == "jobs":
            _put_newer(self._attempt_jobs.setdefault(key, {}), AttemptJob.from_object(obj))
        else:
            _put_newer(self._pods.setdefault(key, {}), TrainerPod.from_object(obj))
        return key

    def delete(self, resource: str, obj: JsonObject) -> NamespacedName | None:
        """Remove an object that was deleted; a pod is marked as deleted, until its end is written to status."""
        metadata = obj["metadata"]
        if resource == JOB_PLURAL:
            key = NamespacedName(metadata["namespace"], metadata["name"])
            known = self.jobs.get(key)
            if known is not None and known.uid == metadata["uid"]:
                self._delete_job(key)
            return key
        # The last state of a pod often arrives with its deletion.
        owner = self.put(resource, obj)
        if owner is None:
            return None
        if resource == "jobs":
            self._attempt_jobs[owner].pop(metadata["name"], None)
        else:
            self._pods[owner][metadata["name"]] = replace(self._pods[owner][metadata["name"]], deleted=True)
        return owner

    def _delete_job(self, key: NamespacedName) -> None:
        self.jobs.pop(key, None)
        self.snapshots.pop(key, None)
        # Running pods outlive the job for a moment, and a new job of the same name has to wait for them.
        self._pods[key] = {name: pod for name, pod in self._pods.get(key, {}).items() if not pod.deleted}

    def children(self, key: NamespacedName) -> Children:
        """The children of a FineTuneJob."""
        return Children(
            jobs=tuple(self._attempt_jobs.get(key, {}).values()),
            pods=tuple(self._pods.get(key, {}).values()),
            snapshot=self.snapshots.get(key),
        )

    def replace_children(self, key: NamespacedName, jobs: Iterable[JsonObject], pods: Iterable[JsonObject]) -> None:
        """Replace the children of a FineTuneJob by a fresh list; pods that are not in it are marked as deleted."""
        deleted = {pod.name: replace(pod, deleted=True) for pod in self._pods.get(key, {}).values()}
        self._attempt_jobs[key], self._pods[key] = {}, deleted
        for resource, objects in (("jobs", jobs), ("pods", pods)):
            for obj in objects:
                self.put(resource, obj)

    def names(self) -> dict[str, set[NamespacedName]]:
        """Namespace and name of every object, by resource."""
        by_resource: dict[str, Mapping[NamespacedName, Iterable[str]]] = {
            "jobs": self._attempt_jobs,
            "pods": self._pods,
            JOB_PLURAL: {key: [key.name] for key in self.jobs},
        }
        return {
            resource: {NamespacedName(key.namespace, name) for key, names in children.items() for name in names}
            for resource, children in by_resource.items()
        }

    def purge(self, names: Mapping[str, set[NamespacedName]]) -> None:
        """Remove objects that no longer exist, including pods that are marked as deleted."""
        for key in names[JOB_PLURAL]:
            self._delete_job(key)
        _purge(self._attempt_jobs, names["jobs"])
        _purge(self._pods, names["pods"])


def _put_newer(children: dict[str, Child], child: Child) -> None:
    known = children.get(child.name)
    if known is None or _is_newer(child.resource_version, known.resource_version):
        children[child.name] = child


def _purge(children: dict[NamespacedName, dict[str, Child]], names: set[NamespacedName]) -> None:
    for key, by_name in children.items():
        children[key] = {name: it for name, it in by_name.items() if (key.namespace, name) not in names}


def _is_newer(version: str, than: str) -> bool:
    """Resource versions are growing integers (guaranteed since Kubernetes 1.35, true before); equal counts as newer."""
    return not (version.isdigit() and than.isdigit()) or int(version) >= int(than)
