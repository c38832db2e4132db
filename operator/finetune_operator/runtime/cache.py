"""What the watches have told, trimmed to what matters: the operator's only memory, and it can be lost at any time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from finetune_api.names import JOB_PLURAL
from finetune_operator.core.children import AttemptJob, Children, TrainerPod, attempt_job, owner_key, trainer_pod
from finetune_operator.core.observed import Key, ObservedJob, observe
from finetune_operator.core.progress import Reading

logger = logging.getLogger(__name__)

Raw = dict[str, Any]
Item = TypeVar("Item", AttemptJob, TrainerPod)
Names = dict[str, set[tuple[str, str]]]
"""(namespace, name) of objects, by resource."""


class Cache:
    """FineTuneJobs, and the Jobs and pods of each."""

    def __init__(self) -> None:
        self.jobs: dict[Key, ObservedJob] = {}
        self.readings: dict[Key, Reading] = {}
        self._attempts: dict[Key, dict[str, AttemptJob]] = {}
        self._pods: dict[Key, dict[str, TrainerPod]] = {}

    def put(self, resource: str, raw: Raw) -> Key | None:
        """Remember an object, unless a newer state of it is known; the FineTuneJob it belongs to."""
        try:
            return self._put(resource, raw)
        except (ValueError, KeyError, TypeError) as error:
            # Anybody may label a pod as ours; what cannot be understood must not stop the rest.
            logger.warning("%s %s is left alone: %s", resource, raw.get("metadata", {}).get("name"), error)
            return None

    def drop(self, resource: str, raw: Raw) -> Key | None:
        """Forget an object that was deleted; of a pod its last words are kept until they are written down."""
        metadata = raw["metadata"]
        if resource == JOB_PLURAL:
            key = Key(metadata["namespace"], metadata["name"])
            known = self.jobs.get(key)
            if known is not None and known.uid == metadata["uid"]:
                self._forget(key)
            return key
        owner = self.put(resource, raw)
        if owner is None:
            return None
        if resource == "jobs":
            self._attempts[owner].pop(metadata["name"], None)
        else:
            self._pods[owner][metadata["name"]] = replace(self._pods[owner][metadata["name"]], gone=True)
        return owner

    def children(self, key: Key) -> Children:
        """What belongs to a FineTuneJob."""
        return Children(
            jobs=tuple(self._attempts.get(key, {}).values()),
            pods=tuple(self._pods.get(key, {}).values()),
            reading=self.readings.get(key),
        )

    def replace_children(self, key: Key, jobs: Iterable[Raw], pods: Iterable[Raw]) -> None:
        """Take what the API server just said for the truth, but keep the last words of pods that are gone."""
        gone = {pod.name: replace(pod, gone=True) for pod in self._pods.get(key, {}).values()}
        self._attempts[key], self._pods[key] = {}, gone
        for resource, items in (("jobs", jobs), ("pods", pods)):
            for item in items:
                self.put(resource, item)

    def known(self) -> Names:
        """Everything that is remembered."""
        children: dict[str, Mapping[Key, Iterable[str]]] = {"jobs": self._attempts, "pods": self._pods}
        names = {
            resource: {(key.namespace, name) for key, items in known.items() for name in items}
            for resource, known in children.items()
        }
        return names | {JOB_PLURAL: {(key.namespace, key.name) for key in self.jobs}}

    def forget(self, lost: Names) -> None:
        """Forget objects that are not there any more, the last words of their pods included."""
        for namespace, name in lost[JOB_PLURAL]:
            self._forget(Key(namespace, name))
        for key, attempts in self._attempts.items():
            self._attempts[key] = {
                name: it for name, it in attempts.items() if (key.namespace, name) not in lost["jobs"]
            }
        for key, pods in self._pods.items():
            self._pods[key] = {name: it for name, it in pods.items() if (key.namespace, name) not in lost["pods"]}

    def _put(self, resource: str, raw: Raw) -> Key | None:
        if resource == JOB_PLURAL:
            return self._put_job(observe(raw))
        key = owner_key(raw)
        if key is None:
            return None
        if resource == "jobs":
            _put_newer(self._attempts.setdefault(key, {}), attempt_job(raw))
        else:
            _put_newer(self._pods.setdefault(key, {}), trainer_pod(raw))
        return key

    def _put_job(self, job: ObservedJob) -> Key:
        known = self.jobs.get(job.key)
        if known is None or known.uid != job.uid or _newer(job.resource_version, known.resource_version):
            if known is not None and known.uid != job.uid:
                self.readings.pop(job.key, None)
            self.jobs[job.key] = job
        return job.key

    def _forget(self, key: Key) -> None:
        self.jobs.pop(key, None)
        self.readings.pop(key, None)
        # What still runs outlives its owner for a moment, and a new owner of the same name waits for it.
        self._pods[key] = {name: pod for name, pod in self._pods.get(key, {}).items() if not pod.gone}


def _put_newer(items: dict[str, Item], item: Item) -> None:
    known = items.get(item.name)
    if known is None or _newer(item.resource_version, known.resource_version):
        items[item.name] = item


def _newer(version: str, than: str) -> bool:
    """Resource versions are integers that grow (guaranteed since Kubernetes 1.35, true before)."""
    return not (version.isdigit() and than.isdigit()) or int(version) >= int(than)
