"""The data classes of a training run: what it consists of, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from finetune_trainer.data import Dataset
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning.prepare import DatasetIndexes
from finetune_trainer.tasks import Processors, Task
from finetune_trainer.training.assembly import AssembledModel
from finetune_trainer.training.device import DeviceConfig, LossScale
from finetune_trainer.training.divergence import SkippedSteps
from finetune_trainer.training.evaluation import HistoryEntry
from finetune_trainer.training.process_group import ProcessGroup, SingleProcess


@dataclass(frozen=True)
class TrainingContext:
    """What a run consists of. Only the weights and the optimizer state change.

    Args:
        plan: the plan of the run.
        task: the task.
        model: the model, on the device, and its modules.
        processors: tokenizer and image processor.
        train: the training set.
        validation: the validation set, if there is one.
        optimizers: one per optimizer type.
        device_config: device and precision.
        indexes: size of each example of the datasets.
        test: the test set, if there is one.
        process_group: the processes that train together.
    """

    plan: RunPlan
    task: Task
    model: AssembledModel
    processors: Processors
    train: Dataset
    validation: Dataset | None
    optimizers: list[Optimizer]
    device_config: DeviceConfig
    indexes: DatasetIndexes
    test: Dataset | None = None
    process_group: ProcessGroup = field(default_factory=SingleProcess)


@dataclass
class TrainState:
    """How far a run has come. A checkpoint has this, the weights, the optimizer state and the RNG state.

    Args:
        loss_scale: the loss scale.
        step: optimizer steps done.
        history: all evaluations so far.
        elapsed: seconds of training so far, over all attempts.
        position: position of the data source, as its `position()` returned it; empty for the beginning.
        skipped: steps skipped because loss or gradients were not finite, over all attempts.
    """

    loss_scale: LossScale
    step: int = 0
    history: list[HistoryEntry] = field(default_factory=list)
    elapsed: float = 0.0
    position: Mapping[str, Any] = field(default_factory=dict)
    skipped: SkippedSteps = field(default_factory=SkippedSteps)

    @property
    def last_evaluated_step(self) -> int:
        """The step of the last evaluation, or -1."""
        return self.history[-1].step if self.history else -1
