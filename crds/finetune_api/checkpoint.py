"""How often a run can be resumed from, and where its result goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Epochs, Model, Steps, at_most_one_of
from finetune_api.sources import Destination


class Checkpoint(Model):
    """Checkpoints of weights, optimizers, data position and random state: a resumed run goes on as if never stopped."""

    rules = (at_most_one_of("everySteps", "everyEpochs"),)

    every_steps: Steps | None = None
    """Every so many optimizer steps."""
    every_epochs: Epochs | None = None
    """Every so many epochs (1 when neither is set)."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the latest are kept."""
    keep_best: bool = True
    """Keep the best by the evaluation metric as well; it becomes the output."""


class Output(Model):
    """Where the fine-tuned model goes."""

    destination: Destination | None = None
    """`pvc://claim/path` (default: a claim `<job>-output` that the operator makes)."""
    if_exists: Literal["Fail", "Overwrite"] = "Fail"
    """When a model is there already: the same spec counts as done; another fails, or overwrites it."""
