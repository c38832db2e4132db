"""The latest state of a run, and the report for the status of its FineTuneJob.

The training loop only stores its latest records here. They are formatted when Prometheus scrapes, or when the
termination message is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_api.status import BestEvaluation, CheckpointStatus, Metric, ModuleStatus, OutputStatus, Report
from finetune_api.status import Progress as ProgressStatus
from finetune_trainer.callbacks import Callback, CheckpointRecord, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.plan import ModulePlan, RunPlan
from finetune_trainer.reporting.metrics_jsonl import read_records

MAX_MESSAGE_LENGTH = 1000
"""Characters in the message of a report; the API accepts at most 1024."""


class StatusTracker(Callback):
    """Stores the latest record of every kind."""

    def __init__(self) -> None:
        self.plan: RunPlan | None = None
        self.step: StepRecord | None = None
        self.evaluation: EvaluationRecord | None = None
        self.best: EvaluationRecord | None = None
        self.test: TestRecord | None = None
        self.checkpoint: CheckpointRecord | None = None
        self.resumed_step = self.steps_executed = self.nonfinite_steps = self.skipped_steps = 0
        self.step_time: datetime | None = None

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        self.plan, self.resumed_step = plan, resumed_step

    def on_step_end(self, record: StepRecord) -> None:
        self.step, self.step_time = record, datetime.now(UTC)
        self.steps_executed += 1
        self.nonfinite_steps += record.skipped
        self.skipped_steps += record.skipped

    def on_evaluate(self, record: EvaluationRecord) -> None:
        self.evaluation = record
        self.best = record if record.best else self.best

    def on_test(self, record: TestRecord) -> None:
        self.test = record

    def on_save(self, record: CheckpointRecord) -> None:
        self.checkpoint = record

    def restore(self, metrics: Path) -> None:
        """Restore the evaluations, the test and the count of skipped steps of earlier attempts."""
        for record in read_records(metrics):
            if isinstance(record, StepRecord):
                self.skipped_steps += record.skipped
            if isinstance(record, EvaluationRecord):
                self.on_evaluate(record)
            if isinstance(record, TestRecord):
                self.on_test(record)

    @property
    def steps_done(self) -> int:
        return self.step.step if self.step else self.resumed_step

    @property
    def epoch(self) -> float:
        return self.steps_done / self.plan.steps_per_epoch if self.plan else 0.0

    def is_frozen(self, module: ModulePlan) -> bool:
        return self.step.frozen[module.name] if self.step else self.steps_done not in module.window

    # Report

    def report(self, reason: str, message: str, output: OutputStatus | None = None) -> Report:
        """The state of the run as fields of the status."""
        return Report(
            reason=reason,
            message=message[:MAX_MESSAGE_LENGTH],
            progress=self._progress(),
            metrics=list(self._metrics()),
            best=self._best(),
            modules=[self._module(module) for module in self.plan.modules] if self.plan else [],
            checkpoint=None if output else self._checkpoint(),
            output=output,
        )

    def _progress(self) -> ProgressStatus | None:
        if self.plan is None:
            return None
        rate = self.step.samples_per_second if self.step else None
        return ProgressStatus.at_step(
            self.steps_done,
            self.plan.planned_steps,
            epoch=round(self.epoch, 4),
            samples_per_second=round(rate, 3) if rate else None,
            non_finite_steps=self.skipped_steps,
            observed_time=datetime.now(UTC),
        )

    def _metrics(self) -> Iterator[Metric]:
        if self.step is not None and math.isfinite(self.step.loss):
            yield Metric(name="train/loss", value=self.step.loss, step=self.step.step)
        for measured in (self.evaluation, self.test):
            for name, value in measured.metrics.items() if measured else ():
                if measured and math.isfinite(value):
                    yield Metric(name=name, value=value, step=measured.step)

    def _best(self) -> BestEvaluation | None:
        if self.best is None or self.plan is None:
            return None
        metric = self.plan.job.spec.evaluation.metric
        return BestEvaluation(metric=metric, value=self.best.metrics[metric], step=self.best.step)

    def _module(self, module: ModulePlan) -> ModuleStatus:
        norm = self.step.gradient_norms[module.name] if self.step else None
        frozen = self.is_frozen(module)
        return ModuleStatus(
            name=module.name,
            parameters=module.numel,
            trainable=0 if frozen else module.numel,
            optimizer=module.spec.optimizer.type if module.spec.optimizer else None,
            learning_rate=self.step.learning_rates[module.name] if self.step else None,
            gradient_norm=norm if norm is not None and math.isfinite(norm) else None,
            frozen=frozen,
        )

    def _checkpoint(self) -> CheckpointStatus | None:
        if self.checkpoint is None or self.plan is None:
            return None
        run_id, folder = self.checkpoint.path.parent.name, self.checkpoint.path.name
        path = f"{self.plan.job.destination.rstrip('/')}/{CHECKPOINTS_FOLDER}/{run_id}/{folder}"
        return CheckpointStatus(step=self.checkpoint.step, path=path, time=self.checkpoint.time)


def strip_eval_prefix(metric: str) -> str:
    """The name of a metric without `eval/`."""
    return metric.removeprefix("eval/")
