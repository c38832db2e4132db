"""Parses the Prometheus page of a trainer into the progress fields of status.

A trainer pod runs a user's image, so its page is not trusted: metrics that are not on the allow-list, values that are
not finite and rows beyond the limits are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from finetune_api import trainer_metrics as names
from finetune_api.status import CheckpointStatus, Metric, ModuleStatus, Progress

MAX_ROWS = 64
MAX_LABEL = 63

ALLOWED = frozenset(value for key, value in vars(names).items() if key.isupper() and value.startswith("finetune_"))

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Reading:
    """One look at rank 0."""

    progress: Progress
    metrics: tuple[Metric, ...] = ()
    modules: tuple[ModuleStatus, ...] = ()
    checkpoint: CheckpointStatus | None = None
    attempt: int = 0


def parse(text: str, now: datetime) -> Reading | None:
    """Understand a trainer's page; None when it has no step to report or is no Prometheus text."""
    try:
        values = _values(text)
        if (names.STEP, ()) not in values:
            return None
        progress = _progress(values, now)
        return Reading(progress, _metrics(values, progress.step), _modules(values), _checkpoint(values))
    except (ValueError, KeyError, IndexError):
        return None


def _values(text: str) -> dict[tuple[str, Labels], float]:
    """Finite values by name and labels; only lines that name an allowed metric reach the parser."""
    lines = [line for line in text.splitlines() if _name(line) in ALLOWED]
    values: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            if math.isfinite(sample.value) and all(len(value) <= MAX_LABEL for _, value in labels):
                values[sample.name, labels] = sample.value
    return values


def _name(line: str) -> str:
    return line.partition("{")[0].partition(" ")[0]


def _progress(values: dict[tuple[str, Labels], float], now: datetime) -> Progress:
    step, planned = int(values[names.STEP, ()]), int(values.get((names.PLANNED_STEPS, ()), 0))
    return Progress(
        step=step,
        planned_steps=planned,
        epoch=values.get((names.EPOCH, ()), 0.0),
        percentage=round(min(100.0, 100.0 * step / planned), 1) if planned > 0 else 0.0,
        samples_per_second=values.get((names.SAMPLES_PER_SECOND, ())),
        estimated_completion_time=_time(values.get((names.ESTIMATED_COMPLETION_TIME, ()))),
        observed_time=now.replace(microsecond=0),
    )


def _metrics(values: dict[tuple[str, Labels], float], step: int) -> tuple[Metric, ...]:
    found = {}
    if (names.LOSS, ()) in values:
        found["train/loss"] = values[names.LOSS, ()]
    for family, prefix in ((names.EVALUATION, "eval"), (names.BEST_EVALUATION, "best")):
        for metric, value in _by_label(values, family, names.METRIC_LABEL).items():
            found[f"{prefix}/{metric}"] = value
    return tuple(Metric(name=name, value=value, step=step) for name, value in list(found.items())[:MAX_ROWS])


def _modules(values: dict[tuple[str, Labels], float]) -> tuple[ModuleStatus, ...]:
    parameters = _by_label(values, names.MODULE_PARAMETERS, names.MODULE_LABEL)
    trainable = _by_label(values, names.MODULE_TRAINABLE, names.MODULE_LABEL)
    rates = _by_label(values, names.LEARNING_RATE, names.MODULE_LABEL)
    norms = _by_label(values, names.GRADIENT_NORM, names.MODULE_LABEL)
    optimizers = _optimizers(values)
    rows = dict.fromkeys([*parameters, *rates])
    return tuple(
        ModuleStatus(
            name=name,
            parameters=int(parameters.get(name, 0)),
            trainable=int(trainable.get(name, 0)),
            optimizer=optimizers.get(name),
            learning_rate=rates.get(name),
            gradient_norm=norms.get(name),
            frozen=name in trainable and trainable[name] == 0,
        )
        for name in list(rows)[:MAX_ROWS]
    )


def _by_label(values: dict[tuple[str, Labels], float], family: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for (name, labels), value in values.items() if name == family}


def _optimizers(values: dict[tuple[str, Labels], float]) -> dict[str, str]:
    rows: Iterable[dict[str, str]] = (dict(labels) for name, labels in values if name == names.MODULE_INFO)
    return {row[names.MODULE_LABEL]: row[names.OPTIMIZER_LABEL] for row in rows if row.get(names.OPTIMIZER_LABEL)}


def _checkpoint(values: dict[tuple[str, Labels], float]) -> CheckpointStatus | None:
    step = values.get((names.LAST_CHECKPOINT_STEP, ()))
    written = _time(values.get((names.LAST_CHECKPOINT_TIME, ())))
    return CheckpointStatus(step=int(step), time=written) if step is not None and written else None


def _time(seconds: float | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(seconds), UTC) if seconds else None
    except (ValueError, OverflowError, OSError):
        return None
