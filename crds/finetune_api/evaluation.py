"""Evaluation on the validation set: interval, metric and early stopping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Epochs, Model, NonNegativeFloat, Steps, exactly_one_of

EVAL_METRIC = r"^eval/[a-z][a-z0-9_]*$"
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=EVAL_METRIC)]

Direction = Literal["Minimize", "Maximize"]


class Interval(Model):
    """An interval in optimizer steps or in epochs. Exactly one of the fields is set."""

    rules = (exactly_one_of("steps", "epochs"),)

    steps: Steps | None = None
    """Number of optimizer steps. Mutually exclusive with epochs."""
    epochs: Epochs | None = None
    """Number of epochs; may be fractional. Mutually exclusive with steps."""


class EarlyStopping(Model):
    """Criteria for stopping a run whose metric no longer improves."""

    patience: Annotated[int, Field(ge=1, le=10_000)]
    """Number of consecutive evaluations without improvement after which training stops."""
    min_delta: NonNegativeFloat = 0.0
    """Minimum change of the metric that counts as an improvement."""


class Evaluation(Model):
    """Evaluation on the validation set, `data.validation` or `data.fold`."""

    every: Interval = Interval(epochs=1.0)
    """Interval between evaluations. The model is also evaluated before the first step and after the last step."""
    metric: MetricName | None = None
    """Metric that selects the best checkpoint, and that early stopping and Plateau schedules follow, e.g. `eval/loss`.
    Defaults to `eval/recall_at_1` for task Contrastive, `eval/loss` for CausalLM, and `eval/accuracy` for
    SequenceClassification and ImageClassification."""
    direction: Direction | None = None
    """Whether lower or higher values of the metric are better. Defaults to the direction in the table of metrics of
    the API reference; required for a metric that is not in it."""
    early_stopping: EarlyStopping | None = None
    """When to stop before the last step. If not set, training does not stop early."""
