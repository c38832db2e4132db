"""Reads everything from the API server: before the first decision, and again now and then.

A watch that was interrupted for too long loses deletions without a word; a complete list now and then heals that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from finetune_api.names import API_VERSION, JOB_LABEL, JOB_PLURAL
from finetune_operator.client.cluster import ApiError, Cluster, path_of
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

logger = logging.getLogger(__name__)

EVERY_SECONDS = 300.0
LOOK_EVERY = 2.0
Found = set[tuple[str, str]]
"""(namespace, name) of objects."""
RESOURCES = ("pods", "jobs", JOB_PLURAL)
"""Children first: a job is never seen without what it already has."""


class Lister:
    """Lists the watched namespaces into the cache."""

    def __init__(self, cluster: Cluster, cache: Cache, queue: WorkQueue, namespaces: list[str]) -> None:
        self._cluster = cluster
        self._cache = cache
        self._queue = queue
        self._namespaces: list[str | None] = [*namespaces] or [None]
        self.last = time.monotonic()

    async def list_all(self) -> None:
        """Bring the cache in line with the cluster, and let every job be looked at."""
        before = self._cache.known()
        lost = {resource: before[resource] - await self._list(resource, before[resource]) for resource in RESOURCES}
        self._cache.forget(lost)
        for key in self._cache.jobs:
            self._queue.add(key)
        self.last = time.monotonic()

    async def run(self) -> None:
        """List again and again, at uneven intervals, so that many operators do not do it all at once."""
        while True:
            await asyncio.sleep(EVERY_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 jitter
            try:
                await self.list_all()
            except ApiError as error:
                logger.warning("the cluster could not be listed: %s", error)

    async def _list(self, resource: str, known: Found) -> Found:
        """What is there; of a namespace that may not be looked into, such as a deleted one, what was known of it."""
        found: Found = set()
        refusals = []
        for namespace in self._namespaces:
            try:
                found |= await self._list_in(namespace, resource)
            except ApiError as error:
                if not error.forbidden:
                    raise
                refusals.append(error)
                found |= {it for it in known if it[0] == namespace}
                logger.warning("namespace %s is left alone: %s", namespace, error)
        if len(refusals) == len(self._namespaces):
            raise refusals[0]
        return found

    async def _list_in(self, namespace: str | None, resource: str) -> Found:
        found: Found = set()
        selector = "" if resource == JOB_PLURAL else JOB_LABEL
        async for item in self._cluster.items(path_of(resource, namespace), selector):
            self._cache.put(resource, item)
            found.add((item["metadata"]["namespace"], item["metadata"]["name"]))
        return found


async def until_served(cluster: Cluster) -> None:
    """Wait until the API server serves FineTuneJobs, which it does once their definition is Established."""
    told = ""
    while True:
        problem = await _not_served(cluster)
        if not problem:
            return
        if problem != told:
            logger.warning("waiting: %s", problem)
            told = problem
        await asyncio.sleep(LOOK_EVERY)


async def _not_served(cluster: Cluster) -> str:
    advice = f"install the CustomResourceDefinition {JOB_PLURAL}.{API_VERSION.partition('/')[0]}"
    try:
        found = await cluster.get(f"/apis/{API_VERSION}")
    except ApiError as error:
        return f"the API server does not serve {API_VERSION}: {advice}" if error.not_found else str(error)
    served = any(resource["name"] == JOB_PLURAL for resource in found.get("resources") or [])
    return "" if served else f"{JOB_PLURAL} are not Established yet: {advice}"
