"""Parses the Prometheus page of a trainer into the progress fields of status.

A trainer pod runs a user's image, so its page is not trusted: metrics that are not on the allow-list, values that are
not finite and rows beyond the limits are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from finetune_api import trainer_metrics as names
from finetune_api.status import BestEvaluation, CheckpointStatus, Metric, ModuleStatus, Progress

MAX_ROWS = 64
"""`maxItems` of `status.metrics` and `status.modules`."""
MAX_LABEL_LENGTH = 63

ALLOWED = frozenset(value for key, value in vars(names).items() if key.isupper() and value.startswith("finetune_"))

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
"""Value by metric name and sorted labels."""


@dataclass(frozen=True)
class ProgressSnapshot:
    """What rank 0 of an attempt exported at one moment."""

    attempt_number: int
    progress: Progress
    metrics: tuple[Metric, ...] = ()
    best: BestEvaluation | None = None
    modules: tuple[ModuleStatus, ...] = ()
    checkpoint: CheckpointStatus | None = None


def parse_metrics_page(text: str, attempt_number: int, now: datetime) -> ProgressSnapshot | None:
    """Parse a trainer's page; None if it is not in Prometheus' text format or has no `finetune_step`."""
    try:
        samples = _parse_samples(text)
        if (names.STEP, ()) not in samples:
            return None
        progress = _progress(samples, now)
        return ProgressSnapshot(
            attempt_number=attempt_number,
            progress=progress,
            metrics=_metrics(samples, progress.step),
            best=_best(samples),
            modules=_modules(samples),
            checkpoint=_checkpoint(samples),
        )
    except (ValueError, KeyError, IndexError):
        return None


def _parse_samples(text: str) -> Samples:
    """The finite samples of allowed metrics; other lines never reach the parser."""
    lines = [line for line in text.splitlines() if _metric_name(line) in ALLOWED]
    samples: Samples = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            if math.isfinite(sample.value) and all(len(value) <= MAX_LABEL_LENGTH for _, value in labels):
                samples[sample.name, labels] = sample.value
    return samples


def _metric_name(line: str) -> str:
    return line.partition("{")[0].partition(" ")[0]


def _progress(samples: Samples, now: datetime) -> Progress:
    return Progress.at_step(
        int(samples[names.STEP, ()]),
        int(samples.get((names.PLANNED_STEPS, ()), 0)),
        epoch=samples.get((names.EPOCH, ()), 0.0),
        samples_per_second=samples.get((names.SAMPLES_PER_SECOND, ())),
        estimated_completion_time=_time(samples.get((names.ESTIMATED_COMPLETION_TIME, ()))),
        non_finite_steps=int(samples.get((names.SKIPPED_STEPS, ()), 0)),
        observed_time=now.replace(microsecond=0),
    )


def _metrics(samples: Samples, step: int) -> tuple[Metric, ...]:
    values = {}
    if (names.LOSS, ()) in samples:
        values["train/loss"] = samples[names.LOSS, ()]
    for metric, value in _by_label(samples, names.EVALUATION, names.METRIC_LABEL).items():
        values[f"eval/{metric}"] = value
    return tuple(Metric(name=name, value=value, step=step) for name, value in list(values.items())[:MAX_ROWS])


def _best(samples: Samples) -> BestEvaluation | None:
    steps = _by_label(samples, names.BEST_EVALUATION_STEP, names.METRIC_LABEL)
    for metric, value in _by_label(samples, names.BEST_EVALUATION, names.METRIC_LABEL).items():
        if metric in steps:
            return BestEvaluation(metric=f"eval/{metric}", value=value, step=int(steps[metric]))
    return None


def _modules(samples: Samples) -> tuple[ModuleStatus, ...]:
    parameters = _by_label(samples, names.MODULE_PARAMETERS, names.MODULE_LABEL)
    trainable = _by_label(samples, names.MODULE_TRAINABLE, names.MODULE_LABEL)
    learning_rates = _by_label(samples, names.LEARNING_RATE, names.MODULE_LABEL)
    gradient_norms = _by_label(samples, names.GRADIENT_NORM, names.MODULE_LABEL)
    optimizers = _optimizers(samples)
    modules = dict.fromkeys([*parameters, *learning_rates])
    return tuple(
        ModuleStatus(
            name=module,
            parameters=int(parameters.get(module, 0)),
            trainable=int(trainable.get(module, 0)),
            optimizer=optimizers.get(module),
            learning_rate=learning_rates.get(module),
            gradient_norm=gradient_norms.get(module),
            frozen=trainable.get(module) == 0,
        )
        for module in list(modules)[:MAX_ROWS]
    )


def _by_label(samples: Samples, family: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for (name, labels), value in samples.items() if name == family}


def _optimizers(samples: Samples) -> dict[str, str]:
    rows = [dict(labels) for name, labels in samples if name == names.MODULE_INFO]
    return {row[names.MODULE_LABEL]: row[names.OPTIMIZER_LABEL] for row in rows if row.get(names.OPTIMIZER_LABEL)}


def _checkpoint(samples: Samples) -> CheckpointStatus | None:
    step = samples.get((names.LAST_CHECKPOINT_STEP, ()))
    time = _time(samples.get((names.LAST_CHECKPOINT_TIME, ())))
    return CheckpointStatus(step=int(step), time=time) if step is not None and time else None


def _time(seconds: float | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(seconds), UTC) if seconds else None
    except (ValueError, OverflowError, OSError):
        return None
