"""What a run will do, decided before its first step: steps, modules, windows, schedules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.job import FineTuneJob
from finetune_api.modules import Module
from finetune_api.schedules import Judgement, Schedule


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

    def learning_rate(self, step: int, judgements: Iterable[Judgement] = ()) -> float:
        """The learning rate at optimizer step `step` of the run; 0 while frozen.

        Args:
            judgements: the evaluations so far, at steps of the run; without them a Plateau is flat.
        """
        if self.schedule is None or self.spec.optimizer is None or step not in self.window:
            return 0.0
        start = self.window.start
        on_own_clock = ((when - start, value) for when, value in judgements)
        return self.spec.optimizer.learning_rate * self.schedule.factor(step - start, on_own_clock)


@dataclass(frozen=True)
class RunPlan:
    """The whole run before its first step.

    Args:
        job: the effective job.
        modules: one plan per module, in the manifest's order.
        unmatched: parameters no module names (only with `unmatched: Freeze`).
        planned_steps: optimizer steps planned.
        steps_per_epoch: optimizer steps in one epoch.
        train_samples, validation_samples: sizes of the data sets.
    """

    job: FineTuneJob
    modules: tuple[ModulePlan, ...]
    unmatched: tuple[str, ...]
    planned_steps: int
    steps_per_epoch: int
    train_samples: int
    validation_samples: int
