"""Prometheus metrics of the FineTuneJobs, computed from their status at each scrape.

A finished pod is no longer scraped, so the operator exports the last values of every job: they outlive the trainer pod
and a restart of the operator.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.core.observed import ObservedJob
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

JOB_LABELS = ("namespace", "name")


class JobCollector(Collector):
    """Gauges about jobs, computed when somebody scrapes."""

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = list(self._cache.jobs.values())
        yield _gauge("finetune_queue_depth", "Jobs waiting for a worker.", (), [((), float(self._queue.depth))])
        yield _gauge("finetune_queue_age_seconds", "How long the first has waited.", (), [((), self._queue.age)])
        states = Tally(job.state for job in jobs if job.state)
        counts: list[Row] = [((state,), float(count)) for state, count in states.items()]
        yield _gauge("finetune_jobs", "Jobs, by state.", ("state",), counts)
        yield _info(jobs)
        yield _conditions(jobs)
        yield from _mirror(jobs)


Row = tuple[tuple[str, ...], float]


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: list[Row]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _info(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    rows: list[Row] = []
    for job in jobs:
        model = str((job.spec.get("model") or {}).get("source", ""))
        rows.append(((*job.key, model, str(job.status.attempt or 0)), 1.0))
    return _gauge("finetune_job_info", "Always 1.", (*JOB_LABELS, "model", "attempt"), rows)


def _conditions(jobs: list[ObservedJob]) -> GaugeMetricFamily:
    rows: list[Row] = [((*job.key, it.type, it.status), 1.0) for job in jobs for it in job.status.conditions]
    return _gauge("finetune_job_condition", "1 for the present status.", (*JOB_LABELS, "condition", "status"), rows)


def _mirror(jobs: list[ObservedJob]) -> Iterator[GaugeMetricFamily]:
    """What the trainers said last, until nothing of the job is left to look into."""
    jobs = [job for job in jobs if job.status.cleanup_time is None]
    told = [(job, job.status.progress) for job in jobs]
    steps: list[Row] = [((*job.key,), float(it.step)) for job, it in told if it]
    planned: list[Row] = [((*job.key,), float(it.planned_steps)) for job, it in told if it]
    metrics = [(job, it) for job in jobs for it in job.status.metrics or []]
    losses: list[Row] = [((*job.key,), it.value) for job, it in metrics if it.name == "train/loss"]
    evaluations: list[Row] = [
        ((*job.key, it.name.removeprefix("eval/")), it.value) for job, it in metrics if it.name.startswith("eval/")
    ]
    modules = [(job, it) for job in jobs for it in job.status.modules or []]
    rates: list[Row] = [((*job.key, it.name), it.learning_rate) for job, it in modules if it.learning_rate is not None]
    norms: list[Row] = [((*job.key, it.name), it.gradient_norm) for job, it in modules if it.gradient_norm is not None]
    yield _gauge("finetune_job_step", "Optimizer steps done.", JOB_LABELS, steps)
    yield _gauge("finetune_job_planned_steps", "Optimizer steps planned.", JOB_LABELS, planned)
    yield _gauge("finetune_job_loss", "Latest training loss.", JOB_LABELS, losses)
    yield _gauge("finetune_job_evaluation", "Latest evaluation.", (*JOB_LABELS, "metric"), evaluations)
    yield _gauge("finetune_job_learning_rate", "Learning rate of a module.", (*JOB_LABELS, "module"), rates)
    yield _gauge("finetune_job_gradient_norm", "Gradient norm of a module.", (*JOB_LABELS, "module"), norms)
