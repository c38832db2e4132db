"""When a model is evaluated, by what it is judged, and when that ends the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Epochs, Model, NonNegativeFloat, Steps, exactly_one_of

EVAL_METRIC = r"^eval/[a-z][a-z0-9_]*$"
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=EVAL_METRIC)]

Direction = Literal["Minimize", "Maximize"]


class Every(Model):
    """An interval, in optimizer steps or in epochs."""

    rules = (exactly_one_of("steps", "epochs"),)

    steps: Steps | None = None
    """Every so many optimizer steps."""
    epochs: Epochs | None = None
    """Every so many epochs; may be a fraction of one."""


class EarlyStopping(Model):
    """Stop when the metric no longer gets better."""

    patience: Annotated[int, Field(ge=1, le=10_000)]
    """Evaluations without improvement before the training stops."""
    min_delta: NonNegativeFloat = 0.0
    """Smallest change that counts as an improvement."""


class Evaluation(Model):
    """Evaluation on the validation set."""

    every: Every = Every(epochs=1.0)
    """How often; the last step is always evaluated."""
    metric: MetricName | None = None
    """What picks the best checkpoint, e.g. `eval/loss` (default: by task)."""
    direction: Direction | None = None
    """Which way the metric gets better (default: by metric)."""
    early_stopping: EarlyStopping | None = None
    """Stop early; never when left out."""
