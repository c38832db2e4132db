"""Kopf as an informer: it watches, reconnects and backs off; each event updates the cache and queues a key.

kubernetes.aio has no informer. Only Kopf's raw events are used: its stateful handlers would add finalizers and
annotations to users' objects, and cost a task or a patch per object. The handlers here never fail or wait, so that
none has to be retried.
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
from finetune_operator.runtime.relist import RESOURCES

_GROUP_VERSIONS = {"pods": ("", "v1"), "jobs": ("batch", "v1"), JOB_PLURAL: (GROUP, VERSION)}


async def watch(cache: Cache, queue: WorkQueue, namespaces: list[str], started: asyncio.Event) -> None:
    """Watch forever; `started` is set once Kopf has installed its signal handlers."""
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
        handler = _event_handler(resource, cache, queue)
        kopf.on.event(group, version, resource, registry=registry, id=resource)(handler)
    return registry


def _event_handler(resource: str, cache: Cache, queue: WorkQueue) -> Any:
    async def handle(event: Any, **_: Any) -> None:
        update = cache.delete if event["type"] == "DELETED" else cache.put
        key = update(resource, event["object"])
        if key is not None:
            queue.add(key)

    return handle


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in to the same cluster as `KubeClient.connect`."""
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
    """Delays in seconds between attempts to reach the API server: infinite, exponential, with jitter."""

    def __iter__(self) -> Iterator[float]:
        return (min(30.0, 0.5 * 2.0**tries) * random.uniform(0.8, 1.2) for tries in itertools.count())  # noqa: S311
