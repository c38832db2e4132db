"""The operator process: wait for the CRD and the Lease, then list, watch and reconcile until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from finetune_operator.client.kube_client import KubeClient
from finetune_operator.client.lease import LeaderElector
from finetune_operator.config import Config
from finetune_operator.health import Health, serve_endpoints
from finetune_operator.metrics import REGISTRY
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.job_metrics import JobCollector
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.relist import RELIST_INTERVAL_SECONDS, Relister, wait_until_served
from finetune_operator.runtime.scraper import Scraper
from finetune_operator.runtime.watch import watch
from finetune_operator.runtime.worker import Worker

logger = logging.getLogger(__name__)

WORKERS = 8
MAX_QUEUE_AGE_SECONDS = 300.0
MAX_RELIST_AGE_SECONDS = 4 * RELIST_INTERVAL_SECONDS


@dataclass(frozen=True)
class Options:
    """Command-line options of this process."""

    namespaces: list[str]
    leader_elect: bool
    lease_namespace: str
    lease_name: str
    metrics_port: int
    health_port: int


async def run_operator(config: Config, options: Options) -> None:
    """Run the operator until a signal stops it.

    Raises:
        KubeconfigError: there is no cluster to connect to.
        LeaseLostError: another operator has taken over.
    """
    stop = asyncio.Event()
    _set_on_signals(stop)
    client = await KubeClient.connect()
    try:
        await Manager(config, options, client, stop).run()
    finally:
        await client.close()


def _set_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)


class Manager:
    """Runs watches, workers and scraper, which share a cache and a queue, like the Manager of controller-runtime."""

    def __init__(self, config: Config, options: Options, client: KubeClient, stop: asyncio.Event) -> None:
        self._config = config
        self._options = options
        self._client = client
        self._stop = stop
        self._health = Health()
        self._cache = Cache()
        self._queue = WorkQueue()
        self._relister = Relister(client, self._cache, self._queue, options.namespaces)

    async def run(self) -> None:
        REGISTRY.register(JobCollector(self._cache, self._queue))
        async with serve_endpoints(self._health, REGISTRY, self._options.metrics_port, self._options.health_port):
            self._health.not_ready = "waiting for the FineTuneJob API"
            if not await self._finish_unless_stopped(wait_until_served(self._client)):
                return
            if self._options.leader_elect:
                await self._run_with_leader_election()
            else:
                await self._run_controller()

    async def _run_with_leader_election(self) -> None:
        """Run the controller while holding the Lease."""
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        elector = LeaderElector(self._client, self._options.lease_namespace, self._options.lease_name, identity)
        # A candidate counts as ready: otherwise a rollout would wait for replicas that are not elected.
        self._health.not_ready = ""
        if not await self._finish_unless_stopped(elector.acquire()):
            return
        try:
            await self._run_controller(elector.renew())
        finally:
            await elector.release()

    async def _run_controller(self, *background: Coroutine[Any, Any, None]) -> None:
        """List first, reconcile later: a job must never be reconciled without its existing children."""
        tasks = [asyncio.create_task(it) for it in background]
        try:
            if not await self._finish_unless_stopped(self._relister.relist()):
                return
            self._health.not_ready = ""
            self._health.checks += [self._check_queue_age, self._check_relist_age]
            where = ", ".join(self._options.namespaces) or "all namespaces"
            logger.info("watching %s; found %d FineTuneJobs", where, len(self._cache.jobs))
            tasks += [asyncio.create_task(it) for it in self._controller_tasks()]
            # None of them ends by itself unless it fails or a signal stops the process.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _controller_tasks(self) -> list[Coroutine[Any, Any, None]]:
        workers = [Worker(self._client, self._cache, self._queue, self._config).run() for _ in range(WORKERS)]
        scraper = Scraper(self._cache, self._queue, self._config.scrape_interval_seconds)
        return [*workers, scraper.run(), self._relister.run(), self._watch(), self._wait_for_stop()]

    async def _watch(self) -> None:
        started = asyncio.Event()
        watching = asyncio.create_task(watch(self._cache, self._queue, self._options.namespaces, started))
        try:
            await asyncio.wait({watching, asyncio.create_task(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
            # Replace Kopf's signal handlers: it would shut down for five seconds, during which the Lease is held but
            # no operator is active. Cancelled, it stops at once.
            _set_on_signals(self._stop)
            await watching
        finally:
            watching.cancel()

    async def _finish_unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await something that may take long; False if a signal stops the process first."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._wait_for_stop())
        done, pending = await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for other in pending:
            other.cancel()
        if task not in done:
            return False
        task.result()
        return True

    async def _wait_for_stop(self) -> None:
        await self._stop.wait()

    def _check_queue_age(self) -> str:
        age = self._queue.age_seconds
        return f"work queue is stuck: a job has waited for {age:.0f} s" if age > MAX_QUEUE_AGE_SECONDS else ""

    def _check_relist_age(self) -> str:
        age = self._relister.age_seconds
        return f"last successful relist was {age:.0f} s ago" if age > MAX_RELIST_AGE_SECONDS else ""
