"""The operator as a whole: wait for the language, wait for the Lease, then list, watch and work until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from finetune_operator.client.cluster import Cluster
from finetune_operator.client.lease import Lease
from finetune_operator.config import Config
from finetune_operator.health import Health, serving
from finetune_operator.metrics import REGISTRY
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.job_metrics import JobCollector
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.resync import EVERY_SECONDS, Lister, until_served
from finetune_operator.runtime.scraper import Poller
from finetune_operator.runtime.watch import watch
from finetune_operator.runtime.worker import Worker

logger = logging.getLogger(__name__)

WORKERS = 8
STUCK_SECONDS = 300.0


@dataclass(frozen=True)
class Options:
    """How this process takes part."""

    namespaces: list[str]
    leader_elect: bool
    lease_namespace: str
    lease_name: str
    metrics_port: int
    health_port: int


async def serve(config: Config, options: Options) -> None:
    """Run the operator until a signal stops it.

    Raises:
        NoClusterError: there is nothing to connect to.
        LeaseLostError: another operator has taken over.
    """
    stop = asyncio.Event()
    _stop_on_signals(stop)
    cluster = await Cluster.connect()
    try:
        await _Service(config, options, cluster, stop).run()
    finally:
        await cluster.close()


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)


class _Service:
    def __init__(self, config: Config, options: Options, cluster: Cluster, stop: asyncio.Event) -> None:
        self._config = config
        self._options = options
        self._cluster = cluster
        self._stop = stop
        self._health = Health()
        self._cache = Cache()
        self._queue: WorkQueue = WorkQueue()
        self._lister = Lister(cluster, self._cache, self._queue, options.namespaces)

    async def run(self) -> None:
        REGISTRY.register(JobCollector(self._cache, self._queue))
        async with serving(self._health, REGISTRY, self._options.metrics_port, self._options.health_port):
            self._health.not_ready = "waiting for FineTuneJobs to be served"
            if not await self._unless_stopped(until_served(self._cluster)):
                return
            if not self._options.leader_elect:
                await self._lead([])
                return
            await self._stand_for_leader()

    async def _stand_for_leader(self) -> None:
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        lease = Lease(self._cluster, self._options.lease_namespace, self._options.lease_name, identity)
        self._health.not_ready = ""
        if not await self._unless_stopped(lease.acquire()):
            return
        try:
            await self._lead([lease.keep()])
        finally:
            await lease.release()

    async def _lead(self, besides: list[Coroutine[Any, Any, None]]) -> None:
        """List first, decide later: a job must never be seen without the children it already has."""
        background = [asyncio.create_task(it) for it in besides]
        try:
            if not await self._unless_stopped(self._lister.list_all()):
                return
            self._health.not_ready = ""
            self._health.checks += [self._stuck, self._blind]
            logger.info("serving %s; %d jobs found", self._where(), len(self._cache.jobs))
            background += [asyncio.create_task(it) for it in self._duties()]
            await self._until_first_ends(background)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    def _duties(self) -> list[Coroutine[Any, Any, None]]:
        workers = [Worker(self._cluster, self._cache, self._queue, self._config).run() for _ in range(WORKERS)]
        poller = Poller(self._cache, self._queue, self._config.poll_interval_seconds)
        return [*workers, poller.run(), self._lister.run(), self._watch(), self._told_to_stop()]

    async def _watch(self) -> None:
        started = asyncio.Event()
        watching = asyncio.create_task(watch(self._cache, self._queue, self._options.namespaces, started))
        try:
            await asyncio.wait({watching, asyncio.create_task(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
            # Kopf, told to stop, waits five seconds in which nobody would have the Lease; cancelled, it stops at once.
            _stop_on_signals(self._stop)
            await watching
        finally:
            watching.cancel()

    async def _until_first_ends(self, tasks: list[asyncio.Task[None]]) -> None:
        """None of them ends by itself unless told to stop, so the first that does tells why all of them have to."""
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do something that may take long; False when told to stop first."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._told_to_stop())
        done, waiting = await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for other in waiting:
            other.cancel()
        if task not in done:
            return False
        task.result()
        return True

    async def _told_to_stop(self) -> None:
        await self._stop.wait()

    def _where(self) -> str:
        return ", ".join(self._options.namespaces) or "all namespaces"

    def _stuck(self) -> str:
        return "the queue does not move" if self._queue.age > STUCK_SECONDS else ""

    def _blind(self) -> str:
        return "the cluster was not listed for long" if time.monotonic() - self._lister.last > 4 * EVERY_SECONDS else ""
