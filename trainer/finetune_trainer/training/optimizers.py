"""Builds the optimizers: modules of one type share one torch optimizer, with parameter groups for each of them.

One instance per type costs what one optimizer costs; one per module, or per tensor, costs many times as much. To add
an optimizer: its class in `finetune_api.optimizers`, and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from finetune_api import optimizers as specs
from finetune_trainer.plan import ModulePlan

FUSED: Mapping[str, Any] = {"fused": True}
FOREACH: Mapping[str, Any] = {"foreach": True}
ONE_BY_ONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Kind:
    """What torch calls an optimizer of ours, and which of its implementations is to be used.

    Args:
        torch_class: torch's class.
        implementation: the arguments that choose the quickest one.
        of_instance: fields that torch reads from the instance even when a group says otherwise.
    """

    torch_class: Callable[..., TorchOptimizer]
    implementation: Mapping[str, Any]
    of_instance: tuple[str, ...] = ()


KINDS: Mapping[type, Kind] = {
    specs.SGD: Kind(torch.optim.SGD, FUSED),
    specs.Adam: Kind(torch.optim.Adam, FUSED),
    specs.AdamW: Kind(torch.optim.AdamW, FUSED),
    specs.RMSprop: Kind(torch.optim.RMSprop, FOREACH),
    specs.Adagrad: Kind(torch.optim.Adagrad, FUSED, of_instance=("initial_accumulator_value",)),
    # Its foreach holds copies of all parameters, and who takes Adafactor is short of memory.
    specs.Adafactor: Kind(torch.optim.Adafactor, ONE_BY_ONE),
    specs.NAdam: Kind(torch.optim.NAdam, FOREACH),
    specs.RAdam: Kind(torch.optim.RAdam, FOREACH),
    specs.Muon: Kind(torch.optim.Muon, ONE_BY_ONE),
}

_TORCH_NAMES = {"learning_rate": "lr", "epsilon": "eps"}


def torch_arguments(spec: specs.Optimizer) -> dict[str, Any]:
    """The fields of a manifest's optimizer as torch names them."""
    fields = {_TORCH_NAMES.get(name, name): value for name, value in spec.model_dump(exclude={"type"}).items()}
    if "beta1" in fields:
        fields["betas"] = (fields.pop("beta1"), fields.pop("beta2"))
    return fields


def decays(plan: ModulePlan, parameter: Tensor) -> bool:
    """Whether weight decay, L1 and L2 reach this parameter of the module."""
    return plan.spec.decay_exclude == "Nothing" or parameter.ndim > 1


def build(plans: Sequence[ModulePlan], parameters: Mapping[str, torch.nn.Parameter]) -> list[TorchOptimizer]:
    """One optimizer for each type that the modules name; every group carries the name of its module.

    Modules that differ in what torch reads from the instance only get one each.
    """
    groups: dict[tuple[type, tuple[tuple[str, Any], ...]], list[dict[str, Any]]] = {}
    for plan in plans:
        if (spec := plan.spec.optimizer) is not None:
            shared = tuple((name, getattr(spec, name)) for name in KINDS[type(spec)].of_instance)
            groups.setdefault((type(spec), shared), []).extend(_groups(plan, parameters))
    return [
        KINDS[kind].torch_class(members, **KINDS[kind].implementation, **dict(shared))
        for (kind, shared), members in groups.items()
    ]


def set_learning_rates(optimizers: Sequence[TorchOptimizer], rates: Mapping[str, float]) -> None:
    """Set the rate of every group to its module's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rates[group["module"]]


def forget(optimizers: Sequence[TorchOptimizer], parameters: Sequence[Tensor]) -> None:
    """Drop the state that optimizers hold about these parameters."""
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def _groups(plan: ModulePlan, parameters: Mapping[str, torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The module's group with decay and the one without; an empty one is left out."""
    assert plan.spec.optimizer is not None
    arguments = torch_arguments(plan.spec.optimizer) | {"module": plan.name}
    named = {name: parameters[name] for name in plan.parameters}
    decayed = [parameter for parameter in named.values() if decays(plan, parameter)]
    others = [parameter for parameter in named.values() if not decays(plan, parameter)]
    groups = [{**arguments, "params": decayed}, {**arguments, "params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
