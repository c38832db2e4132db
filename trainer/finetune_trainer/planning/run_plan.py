"""How many optimizer steps a run has, and when and by which schedule each module trains in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.defaults import EffectiveJob
from finetune_api.modules import Freeze, Module
from finetune_api.schedules import ScheduleError, build_schedule
from finetune_api.training import Training
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import pluralize
from finetune_trainer.plan import ModulePlan, RunPlan, Window
from finetune_trainer.planning.parameters import ParameterAssignment, ParameterInfo, assign_parameters


@dataclass(frozen=True)
class RunLength:
    """Number of optimizer steps in the run, unless it stops early, and in an epoch."""

    planned_steps: int
    steps_per_epoch: int


def plan_run(
    job: EffectiveJob, parameters: Sequence[ParameterInfo], train_samples: int, validation_samples: int
) -> RunPlan:
    """Decide everything about an effective job that depends on the model's parameters and the sizes of the datasets.

    Raises:
        UserError: the job does not fit the model or the data.
    """
    modules = job.spec.modules
    length = run_length(job.spec.training, steps_per_epoch(job.spec.training, train_samples))
    assignment = assign_parameters(modules, parameters, job.spec.unmatched)
    plans = plan_modules(modules, length, assignment)
    return RunPlan(
        job,
        plans,
        length.planned_steps,
        length.steps_per_epoch,
        assignment.unmatched,
        train_samples,
        validation_samples,
    )


def steps_per_epoch(training: Training, samples: int) -> int:
    """Number of optimizer steps in one pass over `samples` samples; an incomplete last batch is dropped.

    Raises:
        UserError: the samples do not fill one batch.
    """
    if not samples:
        raise UserError("data.train.source: the training set is empty")
    if samples < training.batch_size:
        raise UserError(
            f"training.batchSize: {training.batch_size} is more than the {samples} samples of the training set; "
            f"expected at most {samples}"
        )
    return samples // training.batch_size


def run_length(training: Training, per_epoch: int) -> RunLength:
    """The length of a run with `per_epoch` optimizer steps in an epoch.

    Raises:
        UserError: it has no step.
    """
    if training.steps:
        return RunLength(training.steps, per_epoch)
    epochs = training.epochs or 1.0
    steps = round(epochs * per_epoch)
    if not steps:
        raise UserError(
            f"training.epochs: {epochs:g} epochs of {pluralize(per_epoch, 'step')} are less than one optimizer step; "
            f"expected at least {1 / per_epoch:.2g}, or training.steps: 1"
        )
    return RunLength(steps, per_epoch)


def plan_modules(
    modules: Sequence[Module], length: RunLength, assignment: ParameterAssignment | None = None
) -> tuple[ModulePlan, ...]:
    """Decide when and by which schedule each module trains.

    Args:
        assignment: the parameters of each module; without it the plans have none.

    Raises:
        UserError: a module never trains, its schedule does not fit its window, or all modules are frozen at a step.
    """
    plans = [_plan_module(module, f"modules[{index}]", length, assignment) for index, module in enumerate(modules)]
    _check_always_trainable(plans, length.planned_steps)
    return tuple(plans)


def trainable_window(freeze: Freeze | None, length: RunLength) -> Window:
    """The optimizer steps in which a module with this freeze is trainable."""
    total, per_epoch = length.planned_steps, length.steps_per_epoch
    if freeze is None:
        return Window(0, total)
    start = freeze.until_step or round((freeze.until_epoch or 0.0) * per_epoch)
    end = freeze.from_step or (round(freeze.from_epoch * per_epoch) if freeze.from_epoch else total)
    return Window(start, min(end, total))


def _plan_module(
    module: Module, field_path: str, length: RunLength, assignment: ParameterAssignment | None
) -> ModulePlan:
    names = assignment.by_module[module.name] if assignment else ()
    numel = assignment.numel[module.name] if assignment else 0
    if module.frozen:
        return ModulePlan(module, names, numel, Window(0, 0), None)
    window = trainable_window(module.freeze, length)
    if not window.length:
        raise UserError(
            f"{field_path}.freeze ({module.name}): the module is never trainable: its window starts at step "
            f"{window.start} and ends at step {window.end} of {length.planned_steps}; train longer, unfreeze it "
            "earlier, or set frozen: true"
        )
    try:
        schedule = build_schedule(module.schedule or [], window.length, length.steps_per_epoch)
    except ScheduleError as error:
        raise UserError(f"{field_path} ({module.name}): {error}") from error
    return ModulePlan(module, names, numel, window, schedule)


def _check_always_trainable(plans: Sequence[ModulePlan], total: int) -> None:
    reached = 0
    for start, end in sorted((plan.window.start, plan.window.end) for plan in plans if plan.window.length):
        if start > reached:
            break
        reached = max(reached, end)
    if reached < total:
        raise UserError(
            f"modules: every module is frozen at step {reached} of {total}; at least one must be trainable at each step"
        )
