"""Checkpoints and output of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Epochs, Model, Steps, at_most_one_of
from finetune_api.sources import Destination

OutputDtype = Literal["FP32", "BF16", "FP16"]


class Checkpoint(Model):
    """When checkpoints are written. They hold the trained weights, optimizer state, position in the data and random
    state. There is always one after the last step, until the output is complete."""

    rules = (at_most_one_of("everySteps", "everyEpochs", "everySeconds"),)

    every_steps: Steps | None = None
    """Number of optimizer steps between checkpoints. Mutually exclusive with everyEpochs and everySeconds. If not set,
    checkpoints are written by epochs or seconds."""
    every_epochs: Epochs | None = None
    """Number of epochs between checkpoints; may be fractional. Mutually exclusive with everySteps and everySeconds.
    Defaults to 1 if neither everySteps nor everySeconds is set."""
    every_seconds: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Seconds of training between checkpoints; each is written after the step that is running. Mutually exclusive with
    everySteps and everyEpochs. If not set, checkpoints are written by steps or epochs."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Number of most recent checkpoints to keep."""
    keep_best: bool = True
    """Whether to also keep the checkpoint with the best evaluation metric, and to use its weights as the output.
    Otherwise, the output has the weights of the last step."""


class Output(Model):
    """Location of the fine-tuned model."""

    destination: Destination | None = None
    """Directory for the fine-tuned model, as `pvc://claim/path`. Defaults to the root of a PersistentVolumeClaim named
    `<job>-output`, which the operator creates and does not delete."""
    dtype: OutputDtype | None = None
    """Data type of the saved weights. Defaults to that of each weight in `model.source`; new weights get the type of
    most others. Buffers, such as the running statistics of batch normalization, keep their type. The final metrics and
    those of the test set are measured with the weights as they are saved."""
    if_exists: Literal["Fail", "Overwrite"] = "Fail"
    """What to do if the destination already holds a model. Fail: the job succeeds without training if the model was
    trained with the same spec, and fails otherwise. Overwrite: the model is replaced."""
