"""The events of a run and the callbacks that receive them: terminal, metrics.jsonl, Prometheus, termination message.

The trainer hands over immutable records and continues; a callback must not block training. The event names follow
`transformers.TrainerCallback` where it has the event.
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
    """One optimizer step.

    Args:
        step: optimizer steps done, including this one.
        planned_steps: optimizer steps of the whole run.
        epoch: epochs done.
        loss: mean over the batch, without regularization.
        learning_rates: learning rate by module; 0 while frozen.
        gradient_norms: L2 norm of the gradients by module, before clipping; 0 while frozen.
        frozen: by module, whether it was frozen in this step.
        samples_per_second: throughput over the most recent steps.
        seconds: duration of this step.
        estimated_completion_time: when the last step is expected to end.
        skipped: loss or gradients were not finite, so the optimizers took no step.
        num_items: items over which the loss is the mean, e.g. tokens.
    """

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
    num_items: int = 0


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on the validation set.

    Args:
        step: optimizer steps done.
        epoch: epochs done.
        metrics: values by name; names start with `eval/`.
        best: whether this is the best evaluation so far.
        seconds: duration.
    """

    step: int
    epoch: float
    metrics: Mapping[str, float]
    best: bool
    seconds: float = 0.0


@dataclass(frozen=True)
class TestRecord:
    """The evaluation on the test set, of the weights that are saved.

    Args:
        step: optimizer steps done.
        metrics: values by name; names start with `test/`.
        seconds: duration.
    """

    __test__ = False  # pytest would collect it as a test class

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
    """Base class of callbacks. Every event does nothing by default."""

    def on_message(self, text: str) -> None:
        """A line for the log, e.g. which model is being loaded or which checkpoint is resumed."""

    def on_progress(self, activity: str, done: int, total: int) -> None:
        """`done` of `total` units of a longer activity outside the steps are done, e.g. "scanning data.train".

        Called at most a few times per second. A `total` of 0 means that it is unknown. `done == total` ends it.
        """

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        """Training begins. `resumed_step` is the step of the checkpoint that was restored, 0 without one."""

    def on_substep_end(self) -> None:
        """A micro-batch went through the forward and the backward pass."""

    def on_step_end(self, record: StepRecord) -> None:
        """An optimizer step ended."""

    def on_prediction_step(self, done: int, total: int) -> None:
        """`done` of `total` batches of an evaluation or of the test are done."""

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """An evaluation ended."""

    def on_test(self, record: TestRecord) -> None:
        """The test ended."""

    def on_save(self, record: CheckpointRecord) -> None:
        """A checkpoint is complete."""

    def on_run_end(self, report: Report) -> None:
        """The run ended, with success or failure, possibly before training began."""

    def close(self) -> None:
        """Flush and release resources; called exactly once, after `on_run_end`."""


@dataclass(frozen=True)
class CallbackList(Callback):
    """Forwards every event to several callbacks, in order."""

    callbacks: tuple[Callback, ...] = field(default=())

    def on_message(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)

    def on_progress(self, activity: str, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_progress(activity, done, total)

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        for callback in self.callbacks:
            callback.on_train_begin(plan, resumed_step)

    def on_substep_end(self) -> None:
        for callback in self.callbacks:
            callback.on_substep_end()

    def on_step_end(self, record: StepRecord) -> None:
        for callback in self.callbacks:
            callback.on_step_end(record)

    def on_prediction_step(self, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_prediction_step(done, total)

    def on_evaluate(self, record: EvaluationRecord) -> None:
        for callback in self.callbacks:
            callback.on_evaluate(record)

    def on_test(self, record: TestRecord) -> None:
        for callback in self.callbacks:
            callback.on_test(record)

    def on_save(self, record: CheckpointRecord) -> None:
        for callback in self.callbacks:
            callback.on_save(record)

    def on_run_end(self, report: Report) -> None:
        for callback in self.callbacks:
            callback.on_run_end(report)

    def close(self) -> None:
        for callback in self.callbacks:
            callback.close()
