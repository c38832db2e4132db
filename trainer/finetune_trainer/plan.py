"""What a run will do, decided before its first step: steps, modules, windows, schedules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.defaults import DefaultedJob, EffectiveJob
from finetune_api.modules import Module
from finetune_api.schedules import EvalResult, Schedule


@dataclass(frozen=True)
class Window:
    """Optimizer steps at which a module is trainable: [start, end)."""

    start: int
    end: int

    def __contains__(self, step: int) -> bool:
        return self.start <= step < self.end

    @property
    def length(self) -> int:
        return max(0, self.end - self.start)


@dataclass(frozen=True)
class ModulePlan:
    """One module of the run, with everything about it decided.

    Args:
        spec: the module as in the effective job.
        parameters: names of the parameters it owns, in the model's order.
        numel: number of elements in those parameters.
        window: when it is trainable; empty for a frozen module.
        schedule: its rate on its own clock (step - window.start); None for a frozen module.
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
        modules: one plan per module, in the manifest's order.
        planned_steps: optimizer steps planned.
        steps_per_epoch: optimizer steps in one epoch.
    """

    job: DefaultedJob
    modules: tuple[ModulePlan, ...]
    planned_steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class RunPlan(SchedulePlan):
    """The whole run before its first step.

    Args:
        job: the effective job.
        unmatched: parameters no module names (only with `unmatched: Freeze`).
        train_samples, validation_samples: sizes of the data sets.
    """

    job: EffectiveJob
    unmatched: tuple[str, ...]
    train_samples: int
    validation_samples: int
