"""Describes a job's settings in short phrases, for tables, terminals and plots. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_trainer.formatting import format_number, format_percent, pluralize

if TYPE_CHECKING:
    from finetune_api.defaults import DefaultedJob
    from finetune_api.modules import Freeze, Module
    from finetune_api.optimizers import Optimizer
    from finetune_api.schedules import Phase
    from finetune_trainer.plan import RunPlan, Window

# Schedules -------------------------------------------------------------------------------------------------------


def describe_schedule(phases: Sequence[Phase]) -> str:
    """A schedule in one line: `warmup 20 steps, then cosine ×3 to 1%`."""
    return ", then ".join(_describe_phase(phase) for phase in phases)


def _describe_phase(phase: Phase) -> str:
    length = _describe_length(phase)
    if phase.type == "Warmup":
        start = f" from {format_percent(phase.start_factor)}" if phase.start_factor else ""
        return f"warmup{length and ' ' + length}{start}"
    return _describe_shape(phase) + (length and f" for {length}")


def _describe_shape(phase: Phase) -> str:
    match phase.type:
        case "Constant":
            return "constant" if phase.factor == 1 else f"constant at {format_percent(phase.factor)}"
        case "TimeDecay":
            return f"time decay {format_number(phase.rate)} {_describe_unit(phase)}"
        case "ExponentialDecay":
            return f"exponential ×{format_number(phase.gamma)} {_describe_unit(phase)}"
        case "StepDecay":
            return f"×{format_number(phase.factor)} {_describe_milestones(phase)}"
        case "CosineAnnealing":
            return _describe_cosine(phase)
        case "LinearDecay":
            return f"linear to {format_percent(phase.end_factor)}"
        case "PolynomialDecay":
            return f"polynomial of power {format_number(phase.power)} to {format_percent(phase.end_factor)}"
        case "InverseSqrt":
            return f"inverse square root over {pluralize(phase.timescale_steps, 'step')}"
        case "Plateau":
            evaluations = pluralize(phase.patience + 1, "evaluation")
            return f"×{format_number(phase.factor)} after {evaluations} without improvement"
        case _:
            return str(phase.type)


def _describe_length(phase: Phase) -> str:
    if phase.steps is not None:
        return pluralize(phase.steps, "step")
    if phase.epochs is not None:
        return pluralize(phase.epochs, "epoch")
    return format_percent(phase.fraction) if phase.fraction is not None else ""


def _describe_unit(phase: Any) -> str:
    return f"per {str(phase.unit).lower()}" + (" (staircase)" if phase.staircase else "")


def _describe_milestones(phase: Any) -> str:
    if phase.milestones is not None:
        return "at epochs " + ", ".join(format_number(at) for at in phase.milestones)
    return describe_interval(phase.every_steps, phase.every_epochs)


def _describe_cosine(phase: Any) -> str:
    text = "cosine"
    if phase.period_steps is not None or phase.period_epochs is not None:
        text += f" {describe_interval(phase.period_steps, phase.period_epochs)}"
        text += f" (each ×{phase.period_multiplier})" if (phase.period_multiplier or 1) > 1 else ""
    elif (phase.cycles or 1) > 1:
        text += f" ×{phase.cycles}"
    return text + (f" to {format_percent(phase.min_factor)}" if phase.min_factor else "")


def describe_interval(steps: int | None, epochs: float | None) -> str:
    """`every 100 steps`, `every epoch`."""
    count, noun = (steps, "step") if steps is not None else (epochs or 1, "epoch")
    return f"every {noun if count == 1 else pluralize(count, noun)}"


# Modules ---------------------------------------------------------------------------------------------------------


def describe_window(module: Module, window: Window | None = None) -> str:
    """When a module is trainable: `always`, `from epoch 1 (step 42)`, `never`."""
    if module.frozen:
        return "never"
    freeze = module.freeze
    if freeze is None or freeze == type(freeze)():
        return "always"
    return " ".join(_window_ends(freeze, window))


def _window_ends(freeze: Freeze, window: Window | None) -> Iterator[str]:
    if freeze.until_step is not None or freeze.until_epoch is not None:
        yield "from " + _describe_time(freeze.until_step, freeze.until_epoch, window.start if window else None)
    if freeze.from_step is not None or freeze.from_epoch is not None:
        yield "until " + _describe_time(freeze.from_step, freeze.from_epoch, window.end if window else None)


def _describe_time(step: int | None, epoch: float | None, known_step: int | None) -> str:
    if step is not None:
        return f"step {step:,}"
    return f"epoch {format_number(epoch or 0)}" + (f" (step {known_step:,})" if known_step is not None else "")


def describe_optimizer(optimizer: Optimizer) -> str:
    """The settings that are not at their defaults, without learning rate and weight decay: `momentum=0.9`."""
    settings: list[str] = []
    for field, info in type(optimizer).model_fields.items():
        value = getattr(optimizer, field)
        if field not in ("type", "learning_rate", "weight_decay") and value != info.default:
            settings.append(f"{info.alias or field}={_format_setting(value)}")
    return ", ".join(settings)


def _format_setting(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else format_number(value)


def describe_regularization(module: Module) -> str:
    """What limits a module's weights and gradients: `weightDecay=0.01, l1=1e-7, clipGradNorm=1`."""
    return ", ".join(f"{name}={format_number(value)}" for name, value in regularization(module).items())


def regularization(module: Module) -> dict[str, float]:
    """The module's settings that are not 0, by their names in the manifest."""
    penalty = module.regularization
    settings = {
        "weightDecay": module.optimizer.weight_decay if module.optimizer else 0.0,
        "l1": penalty.l1 if penalty else 0.0,
        "l2": penalty.l2 if penalty else 0.0,
        "clipGradNorm": module.clip_grad_norm or 0.0,
    }
    return {name: value for name, value in settings.items() if value}


# The run ---------------------------------------------------------------------------------------------------------


def describe_run(plan: RunPlan) -> list[tuple[str, str]]:
    """A planned run as labels and values."""
    samples = f"{plan.train_samples:,} training samples"
    samples += f", {plan.validation_samples:,} validation samples" if plan.validation_samples else ""
    return describe_job(plan.job, describe_steps(plan.planned_steps, plan.steps_per_epoch), samples)


def describe_job(job: DefaultedJob, length: str = "", samples: str = "") -> list[tuple[str, str]]:
    """An effective job as labels and values; length and samples are known only where the data is."""
    spec, training, checkpoint = job.spec, job.spec.training, job.spec.checkpoint
    planned = pluralize(training.steps, "step") if training.steps else pluralize(training.epochs or 0, "epoch")
    interval = (
        f"every {pluralize(checkpoint.every_seconds, 'second')}"
        if checkpoint.every_seconds
        else describe_interval(checkpoint.every_steps, checkpoint.every_epochs)
    )
    best = " and the best" if checkpoint.keep_best else ""
    return [
        ("task", spec.task or "from the model's config"),
        ("model", spec.model.source + (f" at {spec.model.revision}" if spec.model.revision else "")),
        ("data", spec.data.train.source + (f", {samples}" if samples else "")),
        ("length", f"{length or planned}, {_describe_batches(job)}"),
        ("compute", f"{spec.resources.device}, precision {training.precision}, seed {training.seed}"),
        ("evaluation", _describe_evaluation(job)),
        ("checkpoint", f"{interval}, keeping the last {checkpoint.keep}{best}"),
        ("output", job.destination),
    ]


def describe_steps(planned_steps: int, steps_per_epoch: int) -> str:
    """The length of a run: `300 steps (3 epochs of 100 steps)`."""
    epochs = pluralize(round(planned_steps / steps_per_epoch, 2), "epoch")
    return f"{pluralize(planned_steps, 'step')} ({epochs} of {pluralize(steps_per_epoch, 'step')})"


def _describe_batches(job: DefaultedJob) -> str:
    training = job.spec.training
    micro = training.micro_batch_size
    accumulated = training.batch_size // micro
    return f"batch size {training.batch_size:,}" + (f" ({accumulated} × {micro:,})" if accumulated > 1 else "")


def _describe_evaluation(job: DefaultedJob) -> str:
    spec = job.spec.evaluation
    validation_set = _describe_validation_set(job)
    if validation_set is None:
        return "none (neither data.validation nor data.fold is set)"
    better = "lowest" if spec.direction == "Minimize" else "highest"
    best = f"the best checkpoint has the {better} {spec.metric}" if spec.metric else "the metric depends on the task"
    return f"on {validation_set}, {describe_interval(spec.every.steps, spec.every.epochs)}; {best}"


def _describe_validation_set(job: DefaultedJob) -> str | None:
    validation, fold = job.spec.data.validation, job.spec.data.fold
    if fold is not None:
        return f"fold {fold.index} of {fold.count}"
    if validation is None:
        return None
    if validation.fraction is not None:
        return f"{format_percent(validation.fraction)} of the training set"
    return validation.source


def describe_metrics(metrics: Mapping[str, float | None]) -> str:
    """Evaluation metrics in one line, without their common prefix: `loss=2.3100  recall_at_1=0.4200`.

    A value that is not finite is None in `run.json`, and is shown as `nan`.
    """
    values = {name: math.nan if value is None else value for name, value in metrics.items()}
    return "  ".join(f"{name.rpartition('/')[2]}={value:.4f}" for name, value in values.items())
