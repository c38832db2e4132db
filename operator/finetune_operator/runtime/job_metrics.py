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

JOB_LABELS = ("namespace", "name")

Sample = tuple[tuple[str, ...], float]
"""Label values and value."""


class JobCollector(Collector):
    """Gauges of the work queue and of all jobs."""

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = list(self._cache.jobs.values())
        yield _gauge("finetune_queue_depth", "Jobs waiting for a worker.", (), [((), self._queue.depth)])
        yield _gauge(
            "finetune_queue_age_seconds", "How long the first has waited.", (), [((), self._queue.age_seconds)]
        )
        states = Counter(job.state for job in jobs if job.state)
        yield _gauge("finetune_jobs", "Jobs, by state.", ("state",), [((it,), count) for it, count in states.items()])
        yield _info(jobs)
        yield _conditions(jobs)
        # Until the job is cleaned up; then there is nothing left to look into.
        yield from _training(job for job in jobs if job.status.cleanup_time is None)


def _gauge(name: str, documentation: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _info(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    samples: list[Sample] = []
    for job in jobs:
        model = str((job.spec.get("model") or {}).get("source", ""))
        samples.append(((*job.key, model, str(job.status.attempt or 0)), 1.0))
    return _gauge("finetune_job_info", "Always 1.", (*JOB_LABELS, "model", "attempt"), samples)


def _conditions(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    samples: list[Sample] = [((*job.key, it.type, it.status), 1.0) for job in jobs for it in job.status.conditions]
    return _gauge("finetune_job_condition", "1 for the present status.", (*JOB_LABELS, "condition", "status"), samples)


def _training(jobs: Iterable[ObservedJob]) -> Iterator[GaugeMetricFamily]:
    """What the trainers reported last."""
    steps: list[Sample] = []
    planned_steps: list[Sample] = []
    losses: list[Sample] = []
    evaluations: list[Sample] = []
    learning_rates: list[Sample] = []
    gradient_norms: list[Sample] = []
    for job in jobs:
        if progress := job.status.progress:
            steps.append((job.key, progress.step))
            planned_steps.append((job.key, progress.planned_steps))
        for metric in job.status.metrics or []:
            if metric.name == "train/loss":
                losses.append((job.key, metric.value))
            elif metric.name.startswith("eval/"):
                evaluations.append(((*job.key, metric.name.removeprefix("eval/")), metric.value))
        for module in job.status.modules or []:
            if module.learning_rate is not None:
                learning_rates.append(((*job.key, module.name), module.learning_rate))
            if module.gradient_norm is not None:
                gradient_norms.append(((*job.key, module.name), module.gradient_norm))
    by_metric, by_module = (*JOB_LABELS, "metric"), (*JOB_LABELS, "module")
    yield _gauge("finetune_job_step", "Optimizer steps done.", JOB_LABELS, steps)
    yield _gauge("finetune_job_planned_steps", "Optimizer steps planned.", JOB_LABELS, planned_steps)
    yield _gauge("finetune_job_loss", "Latest training loss.", JOB_LABELS, losses)
    yield _gauge("finetune_job_evaluation", "Latest evaluation.", by_metric, evaluations)
    yield _gauge("finetune_job_learning_rate", "Learning rate of a module.", by_module, learning_rates)
    yield _gauge("finetune_job_gradient_norm", "Gradient norm of a module.", by_module, gradient_norms)
