"""Data classes of a run's plan: steps, modules, windows and schedules, decided before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.defaults import DefaultedJob, EffectiveJob
from finetune_api.modules import Module
from finetune_api.schedules import EvalResult, Schedule


@dataclass(frozen=True)
class Window:
    """The optimizer steps in which a module is trainable: [start, end), counted from 0."""

    start: int
    end: int

    def __contains__(self, step: int) -> bool:
        return self.start <= step < self.end

    @property
    def length(self) -> int:
        return max(0, self.end - self.start)


@dataclass(frozen=True)
class ModulePlan:
    """The plan of one module.

    Args:
        spec: the module as in the effective job.
        parameters: names of its parameters, in the order of the model.
        numel: number of elements in those parameters.
        window: the steps in which it is trainable; empty for a frozen module.
        schedule: factors on its base learning rate, by step - window.start; None for a frozen module.
    """

    spec: Module
    parameters: tuple[str, ...]
    numel: int
    window: Window
    schedule: Schedule | None

    @property
    def name(self) -> str:
        return self.spec.name

    def learning_rate(self, step: int, eval_history: Iterable[EvalResult] = ()) -> float:
        """The learning rate at optimizer step `step` of the run; 0 while frozen.

        Args:
            eval_history: the evaluations so far, at steps of the run; Plateau follows them.
        """
        if self.schedule is None or self.spec.optimizer is None or step not in self.window:
            return 0.0
        start = self.window.start
        module_history = ((eval_step - start, value) for eval_step, value in eval_history)
        return self.spec.optimizer.learning_rate * self.schedule.factor_at(step - start, module_history)


@dataclass(frozen=True)
class SchedulePlan:
    """The part of a run's plan that depends on neither the model nor the data.

    Args:
        job: the job with its defaults.
        modules: one plan per module, in the order of the manifest.
        planned_steps: number of optimizer steps, unless the run stops early.
        steps_per_epoch: number of optimizer steps in an epoch.
    """

    job: DefaultedJob
    modules: tuple[ModulePlan, ...]
    planned_steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class RunPlan(SchedulePlan):
    """The plan of a run.

    Args:
        job: the effective job.
        unmatched: names of the parameters that no module matches (only with `unmatched: Freeze`).
        train_samples, validation_samples: sizes of the datasets.
    """

    job: EffectiveJob
    unmatched: tuple[str, ...]
    train_samples: int
    validation_samples: int
