"""The parts of one model, and how each of them learns: what this project exists for."""

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
    """Penalties on the weights: grad += l1·sign(w) + l2·w once per optimizer step, before clipping."""

    l1: NonNegativeFloat = 0.0
    """Strength of the L1 penalty."""
    l2: NonNegativeFloat = 0.0
    """Strength of the L2 penalty."""


class Adapter(Model):
    """Small trainable weights beside the module's own, which stay as they are."""

    type: Literal["LoRA", "DoRA"]
    """LoRA (arXiv 2106.09685) or DoRA (arXiv 2402.09353)."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0, le=65_536)] | None = None
    """The update is multiplied by alpha / rank (default: the rank)."""
    dropout: HalfOpenUnitInterval = 0.0
    """Dropout before the update."""
    target_modules: Annotated[list[Glob], Field(min_length=1, max_length=64)] | None = None
    """Globs over the layers that are adapted (default: every linear layer)."""


class Freeze(Model):
    """When a module is frozen: it is trainable from `until` (inclusive) to `from` (exclusive)."""

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
    """Frozen before this step; 0 is from the start."""
    until_epoch: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Frozen before this epoch: 1 thaws before the first step of epoch 1, counted from 0."""
    from_step: Steps | None = None
    """Frozen again from this step on."""
    from_epoch: Epochs | None = None
    """Frozen again from this epoch on."""


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
    """A set of parameters and how it learns."""

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
    """Name of the module, as it appears in the plan, in the status and in Prometheus."""
    parameters: Annotated[list[Glob], Field(min_length=1, max_length=64)]
    """Shell globs over the parameter names of the base model; `*` crosses dots, case matters."""
    exclude: Annotated[list[Glob], Field(max_length=64)] | None = None
    """Globs that take parameters out again."""
    frozen: bool = False
    """Never trained."""
    optimizer: Optimizer | None = None
    """The module's optimizer; required unless the module is frozen."""
    schedule: Annotated[list[Phase], Field(min_length=1, max_length=16)] | None = None
    """Phases of the learning rate (default: warm-up over 3 %, then cosine)."""
    regularization: Regularization | None = None
    """L1 and L2 penalties."""
    decay_exclude: Literal["OneDimensional", "Nothing"] = "OneDimensional"
    """What weight decay, L1 and L2 leave out: biases and norms, or nothing."""
    clip_grad_norm: MaxNorm | None = None
    """Largest gradient norm over this module."""
    freeze: Freeze | None = None
    """Freeze and thaw at a step or an epoch."""
    adapter: Adapter | None = None
    """Train an adapter in place of the module's own weights."""
