"""What a run says while it goes on, and who listens: terminal, metrics.jsonl, Prometheus, termination message.

The loop hands these records over and goes on; a listener never makes training wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from finetune_api.job import FineTuneJob
from finetune_api.modules import Module
from finetune_api.schedules import Judgement, Schedule
from finetune_api.status import Report


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
        elements: how many numbers those hold.
        window: when it is trainable; empty for a frozen module.
        schedule: its rate on its own clock (step - window.start); None for a frozen module.
    """

    spec: Module
    parameters: tuple[str, ...]
    elements: int
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
        total_steps: optimizer steps planned.
        steps_per_epoch: optimizer steps in one epoch.
        train_samples, validation_samples: sizes of the data sets.
    """

    job: FineTuneJob
    modules: tuple[ModulePlan, ...]
    unmatched: tuple[str, ...]
    total_steps: int
    steps_per_epoch: int
    train_samples: int
    validation_samples: int


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. Rates, norms and frozen are by module; the norm is the one before clipping."""

    step: int
    planned_steps: int
    epoch: float
    loss: float
    learning_rates: Mapping[str, float]
    gradient_norms: Mapping[str, float]
    frozen: Mapping[str, bool]
    samples_per_second: float
    seconds: float
    expected_completion: datetime | None = None
    skipped: bool = False


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation after `step` optimizer steps. Names start with `eval/`; `best` tells if it is the best so far."""

    step: int
    epoch: float
    metrics: Mapping[str, float]
    best: bool
    seconds: float = 0.0


@dataclass(frozen=True)
class TestRecord:
    """The test set on the weights that are saved, after the last of `step` steps. Names start with `test/`."""

    __test__ = False  # it is no test case, whatever a test runner makes of its name

    step: int
    metrics: Mapping[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class CheckpointRecord:
    """One complete checkpoint."""

    step: int
    path: Path
    time: datetime


class Listener:
    """Base of all listeners: hears everything, does nothing."""

    def on_message(self, text: str) -> None:
        """A sentence for a person, e.g. what is being loaded or that a checkpoint is resumed from."""

    def on_plan(self, plan: RunPlan, resumed_step: int) -> None:
        """The plan, before the first step; `resumed_step` is 0 for a fresh run."""

    def on_step(self, record: StepRecord) -> None:
        """An optimizer step was taken."""

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Batches of an evaluation done so far."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """An evaluation is done."""

    def on_test(self, record: TestRecord) -> None:
        """The test set is evaluated."""

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """A checkpoint is complete."""

    def on_end(self, report: Report) -> None:
        """The run has ended, well or badly."""

    def close(self) -> None:
        """Flush and let go; called once, always."""


@dataclass(frozen=True)
class Listeners(Listener):
    """Several listeners as one."""

    members: tuple[Listener, ...] = field(default=())

    def on_message(self, text: str) -> None:
        for member in self.members:
            member.on_message(text)

    def on_plan(self, plan: RunPlan, resumed_step: int) -> None:
        for member in self.members:
            member.on_plan(plan, resumed_step)

    def on_step(self, record: StepRecord) -> None:
        for member in self.members:
            member.on_step(record)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        for member in self.members:
            member.on_evaluation_progress(done, total)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        for member in self.members:
            member.on_evaluation(record)

    def on_test(self, record: TestRecord) -> None:
        for member in self.members:
            member.on_test(record)

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        for member in self.members:
            member.on_checkpoint(record)

    def on_end(self, report: Report) -> None:
        for member in self.members:
            member.on_end(report)

    def close(self) -> None:
        for member in self.members:
            member.close()
