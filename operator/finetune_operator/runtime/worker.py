"""Takes keys from the queue, one at a time, and brings each job a step further: look, decide, act."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from finetune_api.names import JOB_PLURAL
from finetune_operator.client.apply import InTheWayError, OutdatedError, RefusedError, apply
from finetune_operator.client.cluster import ApiError, Cluster, job_path
from finetune_operator.client.lookup import look
from finetune_operator.config import Config
from finetune_operator.core.actions import Plan
from finetune_operator.core.observed import Key, ObservedJob
from finetune_operator.core.reconcile import reconcile, refused
from finetune_operator.metrics import RECONCILE_ERRORS, RECONCILE_SECONDS, RECONCILE_TOTAL
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

logger = logging.getLogger(__name__)


class Worker:
    """One of several that share a queue."""

    def __init__(self, cluster: Cluster, cache: Cache, queue: WorkQueue, config: Config) -> None:
        self._cluster = cluster
        self._cache = cache
        self._queue = queue
        self._config = config

    async def run(self) -> None:
        """Work for ever; whatever goes wrong with one job is that job's own trouble."""
        while True:
            key = await self._queue.get()
            started = time.monotonic()
            try:
                await self._step(key)
                RECONCILE_TOTAL.labels("success").inc()
            except Exception as error:  # noqa: BLE001 one job must never stop the others
                self._stumble(key, error)
            finally:
                RECONCILE_SECONDS.observe(time.monotonic() - started)
                self._queue.done(key)

    async def _step(self, key: Key) -> None:
        job = self._cache.jobs.get(key)
        if job is None:
            return
        plan = await self._decide(job)
        try:
            await apply(plan, job, self._cluster, self._cache.put)
        except RefusedError as error:
            await self._report_refusal(job, error)
        except InTheWayError as error:
            logger.info("%s: %s", key, error)
            self._queue.retry(key)
        except OutdatedError:
            RECONCILE_TOTAL.labels("outdated").inc()
            await self._refresh(key)
        else:
            self._queue.forgive(key)
            self._come_back(key, plan)

    async def _refresh(self, key: Key) -> None:
        """Read a FineTuneJob anew, after its cached version turned out to be an old one."""
        try:
            self._cache.put(JOB_PLURAL, await self._cluster.get(job_path(key)))
        except ApiError as error:
            if not error.not_found:
                raise
        self._queue.retry(key)

    async def _decide(self, job: ObservedJob) -> Plan:
        now = datetime.now(UTC)
        plan = reconcile(job, self._cache.children(job.key), now, self._config)
        if plan.look is not None:
            seen = await look(plan.look, job.key, self._cluster)
            self._cache.replace_children(job.key, seen.jobs, seen.pods)
            children = replace(self._cache.children(job.key), missing=seen.missing, leavings=seen.leavings)
            plan = reconcile(job, children, now, self._config)
        return plan

    def _come_back(self, key: Key, plan: Plan) -> None:
        if plan.status is not None or plan.creates:
            # One write at a time: what it changed is already in the cache, so the next step follows at once.
            self._queue.add(key)
        if plan.requeue_after is not None:
            self._queue.add_after(key, plan.requeue_after)
        for event in plan.events:
            logger.info("%s: %s: %s", key, event.reason, event.message)

    async def _report_refusal(self, job: ObservedJob, error: RefusedError) -> None:
        logger.warning("%s: %s", job.key, error)
        await apply(refused(job, str(error), datetime.now(UTC)), job, self._cluster, self._cache.put)
        self._queue.add_after(job.key, self._config.recheck_interval_seconds)

    def _stumble(self, key: Key, error: Exception) -> None:
        RECONCILE_TOTAL.labels("error").inc()
        RECONCILE_ERRORS.inc()
        delay = self._queue.retry(key)
        expected = isinstance(error, ApiError)
        logger.warning("%s: %s; trying again in %.1f s", key, error, delay, exc_info=None if expected else error)
