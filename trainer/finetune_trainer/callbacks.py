"""What a run says while it goes on, and who listens: terminal, metrics.jsonl, Prometheus, termination message.

The loop hands these records over and goes on; a callback never makes training wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from finetune_api.status import Report
from finetune_trainer.plan import RunPlan


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
    estimated_completion_time: datetime | None = None
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


class Callback:
    """Base of all callbacks: hears everything, does nothing."""

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
class CallbackList(Callback):
    """Several callbacks as one."""

    members: tuple[Callback, ...] = field(default=())

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
