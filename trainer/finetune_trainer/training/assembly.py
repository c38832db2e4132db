"""Assembles the model of a run from its plan: load, verify, adapt, wrap, compile.

The order matters. Names and shapes are verified before anything changes them; adapters are added to the base model,
whose names the manifest uses; wrappers for several processes need all parameters; compilation comes last, because it
needs the final forward pass. The base model keeps its own names at each stage, so checkpoints, patterns and the saved
model do not depend on how the loop calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.defaults import EffectiveSpec
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some
from finetune_trainer.plan import ModulePlan
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.parameters import ParameterInfo
from finetune_trainer.planning.weight_check import WeightReport, tie_message
from finetune_trainer.training.device import DeviceConfig
from finetune_trainer.training.dtypes import OutputDtypes, choose_output_dtypes, set_frozen_dtypes

if TYPE_CHECKING:
    from finetune_trainer.planning.prepare import PreparedRun
    from finetune_trainer.tasks import Processors


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
class AssembledModel:
    """The model of a run, on its device.

    Args:
        base: the transformers model; it has the names of the manifest, and is saved.
        forward: what the training loop and the evaluation call; it shares all parameters with `base`.
        modules: the modules that are trainable at some step.
        output_dtypes: the dtypes with which `base` is saved.
    """

    base: PreTrainedModel
    forward: nn.Module
    modules: tuple[TrainableModule, ...]
    output_dtypes: OutputDtypes = field(default_factory=OutputDtypes)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters by name; a tied one by its first name."""
        return dict(self.base.named_parameters())


def assemble(
    prepared: PreparedRun, processors: Processors, device_config: DeviceConfig
) -> tuple[AssembledModel, list[str]]:
    """Load the model, and make it ready for training.

    Returns:
        The model, with all parameters frozen, and messages about what was newly initialized.

    Raises:
        UserError, RunError: the weights cannot be loaded, or do not fit the config or the plan.
    """
    spec, task = prepared.plan.job.spec, prepared.task
    base, new_weights = model_loader.load_model(prepared.pretrained, task, prepared.config)
    weights = replace(prepared.weights or _check_weights(prepared), new=new_weights)
    verify(base, prepared.parameters, prepared.pretrained)
    model_loader.configure_model(base, task, processors, spec.training.activation_checkpointing)
    base.requires_grad_(False)
    base = adapt(base, spec)
    plans = [module for module in prepared.plan.modules if module.window.length]
    set_frozen_dtypes(base, {name for plan in plans for name in plan.parameters}, weights.dtypes, device_config)
    base.to(device_config.device)  # type: ignore[arg-type]
    forward = compile_model(wrap(base, device_config), spec)
    parameters = dict(base.named_parameters())
    modules = tuple(TrainableModule(plan, [parameters[name] for name in plan.parameters]) for plan in plans)
    output_dtypes = choose_output_dtypes(base, weights.dtypes, spec.output.dtype)
    return AssembledModel(base, forward, modules, output_dtypes), weights.messages()


def _check_weights(prepared: PreparedRun) -> WeightReport:
    """The headers of weights that were not on this machine before they were loaded."""
    model = model_loader.build_meta_model(prepared.task.auto_class, prepared.config)
    found = model_loader.check_weights(prepared.pretrained, prepared.config, model, prepared.task.new_head)
    return found or WeightReport()


def verify(model: nn.Module, planned: Sequence[ParameterInfo], pretrained: model_loader.PretrainedSource) -> None:
    """Check that the parameters of a loaded model (names, ties and shapes) are those of the plan.

    Raises:
        UserError: they differ.
    """
    loaded = model_loader.list_parameters(model)
    if set(loaded) == set(planned):
        return
    separate = {info.name for info in loaded}
    for info in planned:
        if other := next((name for name in info.names[1:] if name in separate), None):
            raise UserError(tie_message(pretrained, info.name, other))
    different = set(loaded).symmetric_difference(planned)
    names = join_some(sorted(f"{info.label} {list(info.shape)}" for info in different))
    raise UserError(f"model.source: {pretrained.source}: the loaded parameters are not those of the plan: {names}")


def adapt(model: PreTrainedModel, spec: EffectiveSpec) -> PreTrainedModel:
    """Add the adapters of the modules. Adapters are not supported yet, and the API rejects them."""
    return model


def wrap(model: PreTrainedModel, device_config: DeviceConfig) -> nn.Module:
    """Wrap the model for several processes. One process needs no wrapper."""
    return model


def compile_model(model: nn.Module, spec: EffectiveSpec) -> nn.Module:
    """Compile the forward pass. `training.compile` is not supported yet, and the API rejects it."""
    return model
