"""Modules: sets of parameters of one model, each with its own optimizer, schedule and regularization."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints
from pydantic.alias_generators import to_snake

from finetune_api.base import (
    MODULE_NAME,
    Epochs,
    HalfOpenUnitInterval,
    MaxNorm,
    Model,
    NonNegativeFloat,
    Rule,
    Steps,
    at_most_one_of,
    not_yet_supported,
)
from finetune_api.optimizers import Optimizer
from finetune_api.schedules import Phase

ModuleName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=MODULE_NAME)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Regularization(Model):
    """Penalties on the weights: grad += l1·sign(w) + l2·w, once per optimizer step and before clipping."""

    l1: NonNegativeFloat = 0.0
    """Coefficient of the L1 penalty, whose gradient is l1·sign(w)."""
    l2: NonNegativeFloat = 0.0
    """Coefficient of the L2 penalty, whose gradient is l2·w."""


class Adapter(Model):
    """Low-rank adapter that is trained instead of the weights of the module."""

    type: Literal["LoRA", "DoRA"]
    """Type of the adapter: LoRA (arXiv 2106.09685) or DoRA (arXiv 2402.09353)."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the low-rank update."""
    alpha: Annotated[float, Field(gt=0, le=65_536)] | None = None
    """The update is scaled by alpha / rank. Defaults to rank."""
    dropout: HalfOpenUnitInterval = 0.0
    """Dropout probability of the adapter layers."""
    target_modules: Annotated[list[Glob], Field(min_length=1, max_length=64)] | None = None
    """Patterns of the names of the layers to adapt. Defaults to all linear layers except the output layer."""


class Freeze(Model):
    """When a module is frozen. It is trained from untilStep or untilEpoch (inclusive) to fromStep or fromEpoch
    (exclusive)."""

    rules = (
        at_most_one_of("untilStep", "untilEpoch"),
        at_most_one_of("fromStep", "fromEpoch"),
        Rule(
            field="fromStep",
            message="fromStep must be greater than untilStep: the module is trained from untilStep to fromStep",
            cel="!has(self.untilStep) || !has(self.fromStep) || self.untilStep < self.fromStep",
            is_valid=lambda freeze: (
                freeze.until_step is None or freeze.from_step is None or freeze.until_step < freeze.from_step
            ),
        ),
        Rule(
            field="fromEpoch",
            message="fromEpoch must be greater than untilEpoch: the module is trained from untilEpoch to fromEpoch",
            cel="!has(self.untilEpoch) || !has(self.fromEpoch) || self.untilEpoch < self.fromEpoch",
            is_valid=lambda freeze: (
                freeze.until_epoch is None or freeze.from_epoch is None or freeze.until_epoch < freeze.from_epoch
            ),
        ),
    )

    until_step: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """The module is frozen before this optimizer step, counted from 0. Mutually exclusive with untilEpoch. If neither
    is set, the module is trained from the first step."""
    until_epoch: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """The module is frozen before this epoch, counted from 0 and possibly fractional: with 1, it is frozen during the
    first epoch. Mutually exclusive with untilStep. If neither is set, the module is trained from the first step."""
    from_step: Steps | None = None
    """The module is frozen from this optimizer step on. Mutually exclusive with fromEpoch. If neither is set, the
    module is trained until the last step."""
    from_epoch: Epochs | None = None
    """The module is frozen from this epoch on, counted from 0 and possibly fractional. Mutually exclusive with
    fromStep. If neither is set, the module is trained until the last step."""


_WITHOUT_DURATION = "!has({0}.steps) && !has({0}.epochs) && !has({0}.fraction)"
_ONLY_LAST_WITHOUT_DURATION = Rule(
    field="schedule",
    message="only the last phase may omit its duration: set steps, epochs or fraction on the others",
    cel="!has(self.schedule) || "
    f"self.schedule.filter(phase, {_WITHOUT_DURATION.format('phase')}).size() == 0 || "
    f"(self.schedule.filter(phase, {_WITHOUT_DURATION.format('phase')}).size() == 1 && "
    f"{_WITHOUT_DURATION.format('self.schedule[self.schedule.size() - 1]')})",
    is_valid=lambda module: all(phase.has_duration for phase in (module.schedule or [])[:-1]),
)


def _forbidden_when_frozen(field: str) -> Rule:
    return Rule(
        field=field,
        message=f"{field} must not be set when frozen is true",
        cel=f"!has(self.frozen) || !self.frozen || !has(self.{field})",
        is_valid=lambda module: not module.frozen or getattr(module, to_snake(field)) is None,
    )


class Module(Model):
    """A set of parameters with its own optimizer, schedule and regularization."""

    rules = (
        Rule(
            field="optimizer",
            message="optimizer is required unless frozen is true",
            cel="has(self.optimizer) || (has(self.frozen) && self.frozen)",
            is_valid=lambda module: module.frozen or module.optimizer is not None,
        ),
        _ONLY_LAST_WITHOUT_DURATION,
        not_yet_supported("adapter", "adapter", "!has(self.adapter)", lambda module: module.adapter is None),
        *map(_forbidden_when_frozen, ("optimizer", "schedule", "regularization", "freeze", "clipGradNorm")),
    )

    name: ModuleName
    """Name of the module in the plan, the status, metrics and logs. Must be unique within the job."""
    parameters: Annotated[list[Glob], Field(min_length=1, max_length=64)]
    """Shell-style patterns of the names of the model's parameters that belong to the module. `*` also matches dots,
    braces are expanded as in `layer.{0..5}.*` and `{q,k}_proj.*`, and case is significant. Every pattern must match a
    parameter."""
    exclude: Annotated[list[Glob], Field(max_length=64)] | None = None
    """Patterns of parameters that do not belong to the module although `parameters` matches them. Every pattern must
    match a parameter. If not set, no parameters are excluded."""
    frozen: bool = False
    """Whether the module is never trained. A frozen module has no optimizer, schedule, regularization, clipGradNorm or
    freeze."""
    optimizer: Optimizer | None = None
    """Optimizer of the module. Required unless frozen is true."""
    schedule: Annotated[list[Phase], Field(min_length=1, max_length=16)] | None = None
    """Phases of the learning rate schedule, in order. A phase is a function f(k) of the step k, counted from 0, of its
    n steps; its value is a factor of the base learning rate. Only the last phase may omit its duration; it then lasts
    until the last step. Defaults to Warmup over 3% of the steps, followed by CosineAnnealing to 0."""
    regularization: Regularization | None = None
    """L1 and L2 penalties on the weights of the module. If not set, there are none."""
    decay_exclude: Literal["OneDimensional", "Nothing"] = "OneDimensional"
    """Parameters that weight decay and the L1 and L2 penalties do not apply to. OneDimensional: parameters with at most
    one dimension, such as biases and normalization weights. Nothing: they apply to all parameters."""
    clip_grad_norm: MaxNorm | None = None
    """Maximum norm of the gradients of the module, applied before `training.clipGradNorm`. If not set, they are not
    clipped per module."""
    freeze: Freeze | None = None
    """Steps or epochs during which the module is frozen. If not set, the module is trained throughout."""
    adapter: Adapter | None = None
    """Adapter to train instead of the weights of the module. If not set, the weights are trained."""
