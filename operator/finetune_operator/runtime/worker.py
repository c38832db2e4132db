"""Takes keys from the queue and reconciles each FineTuneJob: decide, apply, requeue."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from finetune_api.names import JOB_PLURAL
from finetune_operator.client.apply import AlreadyExistsError, ApplyError, ConflictError, RejectedError, apply
from finetune_operator.client.kube_client import ApiError, KubeClient, job_path
from finetune_operator.client.lookup import look_up
from finetune_operator.config import Config
from finetune_operator.core.actions import Actions
from finetune_operator.core.objects import NamespacedName
from finetune_operator.core.observed import ObservedJob
from finetune_operator.core.reconcile import reconcile, reconcile_rejected
from finetune_operator.logs import JobLogger
from finetune_operator.metrics import RECONCILE_ERRORS, RECONCILE_SECONDS, RECONCILE_TOTAL
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

logger = logging.getLogger(__name__)


class Worker:
    """One of several workers that share a queue."""

    def __init__(self, client: KubeClient, cache: Cache, queue: WorkQueue, config: Config) -> None:
        self._client = client
        self._cache = cache
        self._queue = queue
        self._config = config

    async def run(self) -> None:
        """Reconcile forever; an error of one job never affects another."""
        while True:
            key = await self._queue.get()
            started = time.monotonic()
            try:
                RECONCILE_TOTAL.labels(await self._reconcile(key)).inc()
            except Exception as error:  # noqa: BLE001 one job must never stop the others
                self._handle_error(key, error)
            finally:
                RECONCILE_SECONDS.observe(time.monotonic() - started)
                self._queue.done(key)

    async def _reconcile(self, key: NamespacedName) -> str:
        """Reconcile a job once. Returns the result for `finetune_reconcile_total`."""
        job = self._cache.jobs.get(key)
        if job is None:
            return "success"
        actions = await self._decide(job)
        try:
            await apply(actions, job, self._client, self._cache.put)
        except RejectedError as error:
            await self._report_rejection(job, error)
            return "rejected"
        except AlreadyExistsError as error:
            self._logger(key).info("%s", error)
            self._queue.add_rate_limited(key)
            return "conflict"
        except ConflictError:
            await self._refresh(key)
            return "conflict"
        self._queue.forget(key)
        self._requeue(key, actions)
        return "success"

    async def _decide(self, job: ObservedJob) -> Actions:
        now = datetime.now(UTC)
        actions = reconcile(job, self._cache.children(job.key), now, self._config)
        if actions.lookup is None:
            return actions
        result = await look_up(actions.lookup, job.key, self._client)
        self._cache.replace_children(job.key, result.jobs, result.pods)
        children = replace(
            self._cache.children(job.key),
            missing_references=result.missing_references,
            leftover_config_maps=result.leftover_config_maps,
        )
        return reconcile(job, children, now, self._config)

    async def _refresh(self, key: NamespacedName) -> None:
        """Read a FineTuneJob again, after its cached version turned out to be stale."""
        try:
            self._cache.put(JOB_PLURAL, await self._client.get(job_path(key)))
        except ApiError as error:
            if not error.is_not_found:
                raise
        self._queue.add_rate_limited(key)

    def _requeue(self, key: NamespacedName, actions: Actions) -> None:
        if actions.status is not None or actions.creates:
            # One write at a time: its result is in the cache already, so the next step follows at once.
            self._queue.add(key)
        if actions.requeue_after is not None:
            self._queue.add_after(key, actions.requeue_after)
        for event in actions.events:
            self._logger(key).info("%s", event.message, extra={"reason": event.reason})

    async def _report_rejection(self, job: ObservedJob, error: RejectedError) -> None:
        self._logger(job.key).warning("%s", error)
        actions = reconcile_rejected(job, str(error), datetime.now(UTC))
        await apply(actions, job, self._client, self._cache.put)
        self._queue.add_after(job.key, self._config.recheck_interval_seconds)

    def _handle_error(self, key: NamespacedName, error: Exception) -> None:
        RECONCILE_TOTAL.labels("error").inc()
        RECONCILE_ERRORS.inc()
        delay = self._queue.add_rate_limited(key)
        expected = isinstance(error, (ApiError, ApplyError))
        exc_info = None if expected else error
        self._logger(key).warning("%s; retrying in %.1f s", error, delay, exc_info=exc_info)

    def _logger(self, key: NamespacedName) -> JobLogger:
        job = self._cache.jobs.get(key)
        return JobLogger(logger, *key, attempt=job.status.attempt if job else None)
