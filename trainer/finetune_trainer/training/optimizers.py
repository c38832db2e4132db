"""Builds the optimizers, and reads and writes their state by parameter name.

Modules with the same optimizer type share one torch optimizer, with parameter groups for each module: one instance per
type costs as much as a single optimizer, one per module or per parameter many times as much. To add an optimizer: its
spec in `finetune_api.optimizers`, and a line in `IMPLEMENTATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_api import optimizers as specs
from finetune_trainer.plan import ModulePlan

FUSED: Mapping[str, Any] = {"fused": True}
FOREACH: Mapping[str, Any] = {"foreach": True}
FOR_LOOP: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Implementation:
    """The torch optimizer of a spec, and which of its implementations is used.

    Args:
        torch_class: class of the optimizer.
        arguments: arguments that select the fastest implementation.
        instance_fields: fields of the spec that torch reads from the constructor only, and ignores in a group.
    """

    torch_class: Callable[..., Optimizer]
    arguments: Mapping[str, Any]
    instance_fields: tuple[str, ...] = ()


IMPLEMENTATIONS: Mapping[type, Implementation] = {
    specs.SGD: Implementation(torch.optim.SGD, FUSED),
    specs.Adam: Implementation(torch.optim.Adam, FUSED),
    specs.AdamW: Implementation(torch.optim.AdamW, FUSED),
    specs.RMSprop: Implementation(torch.optim.RMSprop, FOREACH),
    specs.Adagrad: Implementation(torch.optim.Adagrad, FUSED, instance_fields=("initial_accumulator_value",)),
    # Its foreach implementation copies all parameters, and Adafactor is chosen to save memory.
    specs.Adafactor: Implementation(torch.optim.Adafactor, FOR_LOOP),
    specs.NAdam: Implementation(torch.optim.NAdam, FOREACH),
    specs.RAdam: Implementation(torch.optim.RAdam, FOREACH),
    specs.Muon: Implementation(torch.optim.Muon, FOR_LOOP),
}

_TORCH_NAMES = {"learning_rate": "lr", "epsilon": "eps"}


def torch_arguments(spec: specs.Optimizer) -> dict[str, Any]:
    """The fields of a spec under torch's names."""
    fields = {_TORCH_NAMES.get(name, name): value for name, value in spec.model_dump(exclude={"type"}).items()}
    if "beta1" in fields:
        fields["betas"] = (fields.pop("beta1"), fields.pop("beta2"))
    return fields


def has_weight_decay(plan: ModulePlan, parameter: Tensor) -> bool:
    """Whether weight decay, L1 and L2 apply to a parameter of a module: by default not to biases and norms."""
    return plan.spec.decay_exclude == "Nothing" or parameter.ndim > 1


def build_optimizers(plans: Sequence[ModulePlan], parameters: Mapping[str, nn.Parameter]) -> list[Optimizer]:
    """One optimizer for each optimizer type, and one more for each different value of its instance fields.

    Args:
        plans: the modules.
        parameters: the parameters of the model, by name.

    Returns:
        The optimizers. Each parameter group has the name of its module under the key `module`.
    """
    groups: dict[tuple[type, tuple[tuple[str, Any], ...]], list[dict[str, Any]]] = {}
    for plan in plans:
        if (spec := plan.spec.optimizer) is not None:
            fields = tuple((name, getattr(spec, name)) for name in IMPLEMENTATIONS[type(spec)].instance_fields)
            groups.setdefault((type(spec), fields), []).extend(_param_groups(plan, parameters))
    return [
        IMPLEMENTATIONS[kind].torch_class(members, **IMPLEMENTATIONS[kind].arguments, **dict(fields))
        for (kind, fields), members in groups.items()
    ]


def set_learning_rates(optimizers: Sequence[Optimizer], rates: Mapping[str, float]) -> None:
    """Set the learning rate of every parameter group to that of its module."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rates[group["module"]]


def clear_state(optimizers: Sequence[Optimizer], parameters: Sequence[Tensor]) -> None:
    """Delete the optimizer state of these parameters."""
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def get_optimizer_state_dict(optimizers: Sequence[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """The state of all optimizers, by `<parameter name>/<key of torch's state>`.

    It is keyed by name, because torch's own state_dict is keyed by position: after a change of order it would load the
    state of another parameter of the same shape, without an error.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value.contiguous()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def set_optimizer_state_dict(optimizers: Sequence[Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state from `get_optimizer_state_dict`. Hyperparameters keep the values of the spec."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = tensor
    for optimizer in optimizers:
        owned = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        state = {position: states[name] for position, name in enumerate(owned) if name in states}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class StateLayout:
    """The optimizer state of the parameters of a module.

    Args:
        sizes: by number of dimensions and key of torch's state: number of elements, relative to the parameter.
    """

    sizes: Mapping[int, Mapping[str, float]]

    def is_compatible(self, ndim: int, keys: Iterable[str]) -> bool:
        """Whether the optimizer can continue from a state with these keys."""
        return self.sizes[ndim].keys() == set(keys)

    def numel(self, parameter: Tensor) -> int:
        """Number of elements in the state of a parameter."""
        return round(parameter.numel() * sum(self.sizes[parameter.ndim].values()))


LAYOUT_SIZE = 64
"""Size of the first two dimensions of the parameters that `state_layouts` steps."""


def state_layouts(plans: Sequence[ModulePlan], parameters: Mapping[str, nn.Parameter]) -> dict[str, StateLayout]:
    """The layout of the optimizer state of each module, found by a step of the same optimizer on small parameters."""
    samples: dict[str, nn.Parameter] = {}
    small_plans = []
    for plan in plans:
        by_ndim = {f"{plan.name}/{ndim}": ndim for ndim in {parameters[name].ndim for name in plan.parameters}}
        for name, ndim in by_ndim.items():
            samples[name] = nn.Parameter(torch.zeros((LAYOUT_SIZE,) * min(ndim, 2) + (1,) * max(0, ndim - 2)))
            samples[name].grad = torch.zeros_like(samples[name])
        small_plans.append(replace(plan, parameters=tuple(by_ndim)))
    states: dict[Tensor, Any] = {}
    for optimizer in build_optimizers(small_plans, samples):
        optimizer.step()
        states |= optimizer.state
    return {
        plan.name: StateLayout({samples[name].ndim: _sizes(samples[name], states) for name in plan.parameters})
        for plan in small_plans
    }


def _sizes(sample: Tensor, states: Mapping[Tensor, Mapping[str, Any]]) -> dict[str, float]:
    tensors = {key: value for key, value in states.get(sample, {}).items() if isinstance(value, Tensor)}
    return {key: value.numel() / sample.numel() for key, value in tensors.items()}


def _param_groups(plan: ModulePlan, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """The parameter groups of a module, with and without weight decay; without empty ones."""
    assert plan.spec.optimizer is not None
    arguments = torch_arguments(plan.spec.optimizer) | {"module": plan.name}
    owned = [parameters[name] for name in plan.parameters]
    decayed = [parameter for parameter in owned if has_weight_decay(plan, parameter)]
    others = [parameter for parameter in owned if not has_weight_decay(plan, parameter)]
    groups = [{**arguments, "params": decayed}, {**arguments, "params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
