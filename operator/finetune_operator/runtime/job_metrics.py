"""Prometheus metrics of the FineTuneJobs, computed from their status at each scrape.

A finished pod is no longer scraped, so the operator exports the last values of every job: they outlive the trainer pod
and a restart of the operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.core.observed import ObservedJob
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue


class JobCollector(Collector):
    """Gauges of the work queue and of all jobs."""

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = list(self._cache.jobs.values())
        yield GaugeMetricFamily("finetune_queue_depth", "Number of jobs waiting for a worker.", self._queue.depth)
        yield GaugeMetricFamily(
            "finetune_queue_age_seconds", "Time that the first queued job has waited.", self._queue.age_seconds
        )
        yield _states(jobs)
        yield _info(jobs)
        yield _conditions(jobs)
        # Series of finished jobs end with the cleanup after the TTL.
        yield from _training(job for job in jobs if job.status.cleanup_time is None)


def _states(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("finetune_jobs", "Number of jobs, by state.", labels=["state"])
    for state, count in Counter(job.state for job in jobs if job.state).items():
        family.add_metric([state], count)
    return family


def _info(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    family = _per_job("finetune_job_info", "Model and current attempt; always 1.", "model", "attempt")
    for job in jobs:
        model = str((job.spec.get("model") or {}).get("source", ""))
        family.add_metric([*job.key, model, str(job.status.attempt or 0)], 1)
    return family


def _conditions(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    family = _per_job("finetune_job_condition", "Current status of each condition; always 1.", "condition", "status")
    for job in jobs:
        for condition in job.status.conditions:
            family.add_metric([*job.key, condition.type, condition.status], 1)
    return family


def _training(jobs: Iterable[ObservedJob]) -> Iterator[GaugeMetricFamily]:
    """What the trainers reported last."""
    step = _per_job("finetune_job_step", "Number of optimizer steps done.")
    planned_steps = _per_job("finetune_job_planned_steps", "Number of optimizer steps planned.")
    loss = _per_job("finetune_job_loss", "Training loss of the last step.")
    evaluation = _per_job("finetune_job_evaluation", "Latest value of each evaluation metric.", "metric")
    learning_rate = _per_job("finetune_job_learning_rate", "Learning rate of the last step.", "module")
    gradient_norm = _per_job("finetune_job_gradient_norm", "Gradient norm before clipping.", "module")
    for job in jobs:
        if progress := job.status.progress:
            step.add_metric(job.key, progress.step)
            planned_steps.add_metric(job.key, progress.planned_steps)
        for metric in job.status.metrics or []:
            if metric.name == "train/loss":
                loss.add_metric(job.key, metric.value)
            elif metric.name.startswith("eval/"):
                evaluation.add_metric([*job.key, metric.name.removeprefix("eval/")], metric.value)
        for module in job.status.modules or []:
            if module.learning_rate is not None:
                learning_rate.add_metric([*job.key, module.name], module.learning_rate)
            if module.gradient_norm is not None:
                gradient_norm.add_metric([*job.key, module.name], module.gradient_norm)
    yield from (step, planned_steps, loss, evaluation, learning_rate, gradient_norm)


def _per_job(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=["namespace", "name", *labels])
