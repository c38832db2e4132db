"""Asks the API server itself, where a memory will not do: before an attempt is created or called deleted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from finetune_api.names import JOB_LABEL
from finetune_operator.client.cluster import ApiError, Cluster, Document, path_of
from finetune_operator.core.actions import Look
from finetune_operator.core.children import Leaving, controller_uid
from finetune_operator.core.observed import Key


@dataclass(frozen=True)
class Seen:
    """The children of a job as they are now, what of its references is missing, and what attempts have left."""

    jobs: list[Document]
    pods: list[Document]
    missing: tuple[str, ...]
    leavings: tuple[Leaving, ...]


async def look(wanted: Look, key: Key, cluster: Cluster) -> Seen:
    """Ask the API server."""
    jobs, pods, missing, leavings = await asyncio.gather(
        _labelled("jobs", key, cluster),
        _labelled("pods", key, cluster),
        _missing(wanted, key.namespace, cluster),
        _leavings(wanted, key.namespace, cluster),
    )
    return Seen(jobs, pods, tuple(missing), tuple(leavings))


async def _labelled(resource: str, key: Key, cluster: Cluster) -> list[Document]:
    path = path_of(resource, key.namespace)
    return [item async for item in cluster.items(path, f"{JOB_LABEL}={key.name}")]


async def _missing(wanted: Look, namespace: str, cluster: Cluster) -> list[str]:
    """What is not there, each in a sentence."""
    claims = [
        f"PersistentVolumeClaim {name} does not exist in namespace {namespace}"
        for name in wanted.claims
        if await _find("persistentvolumeclaims", namespace, name, cluster) is None
    ]
    configmaps = [
        f"ConfigMap {name} does not exist in namespace {namespace}"
        for name in wanted.configmaps
        if await _find("configmaps", namespace, name, cluster) is None
    ]
    keys = [problem for name, key in wanted.keys if (problem := await _missing_key(name, key, namespace, cluster))]
    return list(dict.fromkeys(claims + configmaps + keys))


async def _leavings(wanted: Look, namespace: str, cluster: Cluster) -> list[Leaving]:
    """The ConfigMaps of attempts that are there still."""
    found = [await _find("configmaps", namespace, name, cluster) for name in wanted.leavings]
    return [Leaving(it["metadata"]["name"], it["metadata"]["uid"], controller_uid(it)) for it in found if it]


async def _missing_key(name: str, key: str, namespace: str, cluster: Cluster) -> str:
    found = await _find("configmaps", namespace, name, cluster)
    if found is None:
        return f"ConfigMap {name} does not exist in namespace {namespace}"
    if key not in (found.get("data") or {}) and key not in (found.get("binaryData") or {}):
        return f"ConfigMap {name} has no key {key}"
    return ""


async def _find(resource: str, namespace: str, name: str, cluster: Cluster) -> Document | None:
    try:
        return await cluster.get(path_of(resource, namespace, name))
    except ApiError as error:
        if error.not_found:
            return None
        raise
