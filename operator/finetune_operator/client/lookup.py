"""Reads the API server where the cache is not enough: before an attempt is created or considered deleted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from finetune_api.names import JOB_LABEL
from finetune_operator.client.kube_client import ApiError, KubeClient, resource_path
from finetune_operator.core.actions import Lookup
from finetune_operator.core.children import LeftoverConfigMap
from finetune_operator.core.objects import JsonObject, NamespacedName


@dataclass(frozen=True)
class LookupResult:
    """What a Lookup found.

    Args:
        jobs, pods: the objects labeled with the FineTuneJob.
        missing_references: the objects that do not exist, one phrase each.
        leftover_config_maps: those that exist.
    """

    jobs: list[JsonObject]
    pods: list[JsonObject]
    missing_references: tuple[str, ...]
    leftover_config_maps: tuple[LeftoverConfigMap, ...]


async def look_up(lookup: Lookup, key: NamespacedName, client: KubeClient) -> LookupResult:
    """Read everything that a Lookup asks for, concurrently."""
    jobs, pods, missing, config_maps = await asyncio.gather(
        _list_labeled("jobs", key, client),
        _list_labeled("pods", key, client),
        _find_missing(lookup, key.namespace, client),
        _get_existing(lookup.leftover_config_maps, key.namespace, client),
    )
    return LookupResult(jobs, pods, missing, config_maps)


async def _list_labeled(resource: str, key: NamespacedName, client: KubeClient) -> list[JsonObject]:
    path = resource_path(resource, key.namespace)
    return [item async for item in client.list_items(path, f"{JOB_LABEL}={key.name}")]


async def _find_missing(lookup: Lookup, namespace: str, client: KubeClient) -> tuple[str, ...]:
    missing = []
    for name in lookup.claims:
        if await _get("persistentvolumeclaims", namespace, name, client) is None:
            missing.append(f"PersistentVolumeClaim {name} not found")
    for name, key in [*((name, None) for name in lookup.config_maps), *lookup.config_map_keys]:
        config_map = await _get("configmaps", namespace, name, client)
        if config_map is None:
            missing.append(f"ConfigMap {name} not found")
        elif key and key not in (config_map.get("data") or {}) and key not in (config_map.get("binaryData") or {}):
            missing.append(f"ConfigMap {name} has no key {key}")
    return tuple(dict.fromkeys(missing))


async def _get_existing(names: tuple[str, ...], namespace: str, client: KubeClient) -> tuple[LeftoverConfigMap, ...]:
    config_maps = [await _get("configmaps", namespace, name, client) for name in names]
    return tuple(LeftoverConfigMap.from_object(it) for it in config_maps if it)


async def _get(resource: str, namespace: str, name: str, client: KubeClient) -> JsonObject | None:
    try:
        return await client.get(resource_path(resource, namespace, name))
    except ApiError as error:
        if error.is_not_found:
            return None
        raise
