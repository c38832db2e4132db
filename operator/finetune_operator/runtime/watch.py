"""Kopf as an informer: it watches, reconnects and backs off; what it sees goes to the cache, and a key to the queue.

Only Kopf's raw events are used. Its handlers with state would write finalizers and annotations to the user's objects,
and cost a task or a patch for each; nothing here ever fails or waits, so nothing here needs to be retried.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import kopf

from finetune_api.names import GROUP, JOB_LABEL, JOB_PLURAL, VERSION
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.resync import RESOURCES

_GROUP_VERSIONS = {"pods": ("", "v1"), "jobs": ("batch", "v1"), JOB_PLURAL: (GROUP, VERSION)}


async def watch(cache: Cache, queue: WorkQueue, namespaces: list[str], started: asyncio.Event) -> None:
    """Watch for ever; `started` is set once Kopf has taken the process's signals for itself."""
    await kopf.operator(
        registry=_registry(cache, queue),
        settings=_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=started,
    )


def _registry(cache: Cache, queue: WorkQueue) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for resource in RESOURCES:
        group, version = _GROUP_VERSIONS[resource]
        kopf.on.event(group, version, resource, registry=registry, id=resource)(_remember(resource, cache, queue))
    return registry


def _remember(resource: str, cache: Cache, queue: WorkQueue) -> Any:
    async def remember(event: Any, **_: Any) -> None:
        take = cache.drop if event["type"] == "DELETED" else cache.put
        key = take(resource, event["object"])
        if key is not None:
            queue.add(key)

    return remember


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The same cluster as everything else in this process talks to."""
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**kwargs)
    return kopf.login_with_service_account(**kwargs)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _Backoffs()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    for resource in ("jobs", "pods"):
        settings.watching.label_selectors[resource] = JOB_LABEL
    return settings


class _Backoffs:
    """Seconds between tries to reach an API server that does not answer: for ever, and not all at once."""

    def __iter__(self) -> Iterator[float]:
        return (min(30.0, 0.5 * 2.0**tries) * random.uniform(0.8, 1.2) for tries in itertools.count())  # noqa: S311
