"""The data classes of a training run: what it consists of, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from finetune_trainer.data import Dataset
from finetune_trainer.plan import ModulePlan, RunPlan
from finetune_trainer.planning.prepare import DatasetIndexes
from finetune_trainer.tasks import Processors, Task
from finetune_trainer.training.device import DeviceConfig, LossScale
from finetune_trainer.training.evaluation import HistoryEntry
from finetune_trainer.training.process_group import ProcessGroup, SingleProcess


@dataclass(frozen=True)
class TrainableModule:
    """A module that is trainable at some step.

    Args:
        plan: the module's plan.
        parameters: all of its parameters, in the plan's order.
    """

    plan: ModulePlan
    parameters: Sequence[nn.Parameter]

    @property
    def grads(self) -> list[Tensor]:
        """The gradients of the parameters that have one."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


@dataclass(frozen=True)
class TrainingContext:
    """What a run consists of. Only the weights and the optimizer state change.

    Args:
        plan: the plan of the run.
        task: the task.
        model: the model, on the device.
        processors: tokenizer and image processor.
        train: the training set.
        validation: the validation set, if there is one.
        modules: the modules that are trainable at some step.
        optimizers: one per optimizer type.
        device_config: device and precision.
        indexes: size of each example of the datasets.
        test: the test set, if there is one.
        process_group: the processes that train together.
    """

    plan: RunPlan
    task: Task
    model: PreTrainedModel
    processors: Processors
    train: Dataset
    validation: Dataset | None
    modules: tuple[TrainableModule, ...]
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
        skipped_steps: steps skipped because loss or gradients were not finite.
        consecutive_skipped_steps: such steps since the last finite one, in this attempt.
    """

    loss_scale: LossScale
    step: int = 0
    history: list[HistoryEntry] = field(default_factory=list)
    elapsed: float = 0.0
    skipped_steps: int = 0
    consecutive_skipped_steps: int = 0

    @property
    def last_evaluated_step(self) -> int:
        """The step of the last evaluation, or -1."""
        return self.history[-1].step if self.history else -1
