"""Lists all objects: before the first reconciliation, and periodically.

As in client-go, a relist reads the API server. A watch that was interrupted for too long loses deletions without an
error; a complete list repairs that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from finetune_api.names import API_VERSION, GROUP, JOB_LABEL, JOB_PLURAL
from finetune_operator.client.kube_client import ApiError, KubeClient, resource_path
from finetune_operator.core.objects import NamespacedName
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

logger = logging.getLogger(__name__)

RELIST_INTERVAL_SECONDS = 300.0
DISCOVERY_INTERVAL_SECONDS = 2.0
RESOURCES = ("pods", "jobs", JOB_PLURAL)
"""Children first: a FineTuneJob is never reconciled without its children."""


class Relister:
    """Lists the watched namespaces into the cache."""

    def __init__(self, client: KubeClient, cache: Cache, queue: WorkQueue, namespaces: list[str]) -> None:
        self._client = client
        self._cache = cache
        self._queue = queue
        self._namespaces: list[str | None] = [*namespaces] or [None]
        self._last_relist = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """Time since the last successful relist."""
        return time.monotonic() - self._last_relist

    async def relist(self) -> None:
        """Make the cache equal to the cluster, and queue every FineTuneJob."""
        before = self._cache.names()
        deleted = {resource: before[resource] - await self._list(resource, before[resource]) for resource in RESOURCES}
        self._cache.purge(deleted)
        for key in self._cache.jobs:
            self._queue.add(key)
        self._last_relist = time.monotonic()

    async def run(self) -> None:
        """Relist forever, with jitter so that several operators do not list at the same time."""
        while True:
            await asyncio.sleep(RELIST_INTERVAL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 jitter
            try:
                await self.relist()
            except ApiError as error:
                logger.warning("relist failed: %s", error)

    async def _list(self, resource: str, known: set[NamespacedName]) -> set[NamespacedName]:
        """The existing objects; in a namespace without permission, such as a deleted one, those known before."""
        existing: set[NamespacedName] = set()
        errors = []
        for namespace in self._namespaces:
            try:
                existing |= await self._list_namespace(namespace, resource)
            except ApiError as error:
                if not error.is_forbidden:
                    raise
                errors.append(error)
                existing |= {it for it in known if it.namespace == namespace}
                where = f"namespace {namespace}" if namespace else "all namespaces"
                logger.warning("cannot list %s in %s: %s", resource, where, error)
        if len(errors) == len(self._namespaces):
            raise errors[0]
        return existing

    async def _list_namespace(self, namespace: str | None, resource: str) -> set[NamespacedName]:
        existing: set[NamespacedName] = set()
        selector = "" if resource == JOB_PLURAL else JOB_LABEL
        async for item in self._client.list_items(resource_path(resource, namespace), selector):
            self._cache.put(resource, item)
            existing.add(NamespacedName(item["metadata"]["namespace"], item["metadata"]["name"]))
        return existing


async def wait_until_served(client: KubeClient) -> None:
    """Wait until the API server serves FineTuneJobs, which it does once their CRD is Established."""
    reported = ""
    while problem := await _discovery_problem(client):
        if problem != reported:
            logger.warning("waiting for the FineTuneJob API: %s", problem)
            reported = problem
        await asyncio.sleep(DISCOVERY_INTERVAL_SECONDS)


async def _discovery_problem(client: KubeClient) -> str:
    crd = f"CustomResourceDefinition {JOB_PLURAL}.{GROUP}"
    try:
        discovered = await client.get(f"/apis/{API_VERSION}")
    except ApiError as error:
        return f"{API_VERSION} is not served; install {crd}" if error.is_not_found else str(error)
    served = any(resource["name"] == JOB_PLURAL for resource in discovered.get("resources") or [])
    return "" if served else f"{JOB_PLURAL} are not served; check that {crd} is Established"
