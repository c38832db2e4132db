"""Freezes and unfreezes modules between steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from finetune_trainer.training.assembly import TrainableModule
from finetune_trainer.training.optimizers import clear_state


def set_trainable(
    modules: Sequence[TrainableModule], trainable: Sequence[TrainableModule], optimizers: Sequence[Optimizer]
) -> None:
    """Make some modules trainable, and freeze the others: no gradient, no weight decay, no optimizer state."""
    for module in modules:
        for parameter in module.parameters:
            parameter.requires_grad_(module in trainable)
        if module not in trainable:
            clear_state(optimizers, module.parameters)


def set_train_mode(model: nn.Module) -> None:
    """Set the model to training mode, except for normalization layers with running statistics that are frozen.

    Running statistics are frozen with the parameters of their layer or, for a layer without parameters, with those of
    the smallest submodule around it. Dropout stays active in frozen modules: it does not change them, and regularizes
    the modules that learn from their output.
    """
    model.train()
    submodules = dict(model.named_modules())
    for name, submodule in submodules.items():
        if "running_mean" in dict(submodule.named_buffers(recurse=False)):
            parameters = _nearest_parameters(name, submodules)
            submodule.train(any(parameter.requires_grad for parameter in parameters))


def _nearest_parameters(name: str, submodules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """The parameters of a submodule, or of the smallest one around it that has any."""
    parameters = list(submodules[name].parameters())
    return parameters if parameters or not name else _nearest_parameters(name.rpartition(".")[0], submodules)
