"""What is known of a run at any moment, and those who ask for it: Prometheus, and the termination message at the end.

The loop only leaves its latest records here; the work of making text of them is done when somebody asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api import trainer_metrics as names
from finetune_api.names import CHECKPOINTS_FOLDER
from finetune_api.status import BestEvaluation, CheckpointStatus, Metric, ModuleStatus, OutputStatus, Report
from finetune_api.status import Progress as ProgressStatus
from finetune_trainer.callbacks import Callback, CheckpointRecord, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.errors import UserError
from finetune_trainer.plan import ModulePlan, RunPlan
from finetune_trainer.reporting.metrics_jsonl import read

MESSAGE_LENGTH = 1000
"""Of a report's message; the API takes 1024 characters."""


class Tracker(Callback):
    """Remembers the latest of everything."""

    def __init__(self) -> None:
        self.plan: RunPlan | None = None
        self.step: StepRecord | None = None
        self.evaluation: EvaluationRecord | None = None
        self.best: EvaluationRecord | None = None
        self.test: TestRecord | None = None
        self.checkpoint: CheckpointRecord | None = None
        self.resumed_step = self.steps_executed = self.nonfinite_steps = 0
        self.step_time: datetime | None = None

    def on_plan(self, plan: RunPlan, resumed_step: int) -> None:
        self.plan, self.resumed_step = plan, resumed_step

    def on_step(self, record: StepRecord) -> None:
        self.step, self.step_time = record, datetime.now(UTC)
        self.steps_executed += 1
        self.nonfinite_steps += record.skipped

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.evaluation = record
        self.best = record if record.best else self.best

    def on_test(self, record: TestRecord) -> None:
        self.test = record

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        self.checkpoint = record

    def recall(self, metrics: Path) -> None:
        """Remember the evaluations, and the test, of the attempts before."""
        for record in read(metrics):
            if isinstance(record, EvaluationRecord):
                self.on_evaluation(record)
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

    # -- as a report

    def report(self, reason: str, message: str, output: OutputStatus | None = None) -> Report:
        """Everything, in the words of the status."""
        return Report(
            reason=reason,
            message=message[:MESSAGE_LENGTH],
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
        run, folder = self.checkpoint.path.parent.name, self.checkpoint.path.name
        path = f"{self.plan.job.destination.rstrip('/')}/{CHECKPOINTS_FOLDER}/{run}/{folder}"
        return CheckpointStatus(step=self.checkpoint.step, path=path, time=self.checkpoint.time)


class Exporter(Collector):
    """A tracker as Prometheus metrics; read when scraped, so that a scrape costs the training nothing else."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        if self.tracker.plan is None:
            return
        yield from self._run(self.tracker.plan)
        yield from self._modules(self.tracker.plan)
        yield from self._evaluations(self.tracker.plan)
        yield from self._counters(self.tracker.plan)

    def _run(self, plan: RunPlan) -> Iterator[GaugeMetricFamily]:
        it = self.tracker
        yield _gauge(names.STEP, "Optimizer steps done.", it.steps_done)
        yield _gauge(names.PLANNED_STEPS, "Optimizer steps planned.", plan.planned_steps)
        yield _gauge(names.EPOCH, "Epochs done.", it.epoch)
        if it.step is not None:
            yield _gauge(names.LOSS, "Loss of the last step.", it.step.loss)
            yield _gauge(names.SAMPLES_PER_SECOND, "Throughput.", it.step.samples_per_second)
            if it.step.estimated_completion_time:
                completion = it.step.estimated_completion_time.timestamp()
                yield _gauge(names.ESTIMATED_COMPLETION_TIME, "When the last step is expected.", completion)
        if it.step_time is not None:
            yield _gauge(names.LAST_STEP_TIME, "When the last step was done.", it.step_time.timestamp())
        if it.checkpoint is not None:
            yield _gauge(names.LAST_CHECKPOINT_STEP, "Step of the last checkpoint.", it.checkpoint.step)
            when = it.checkpoint.time.timestamp()
            yield _gauge(names.LAST_CHECKPOINT_TIME, "When the last checkpoint was complete.", when)

    def _modules(self, plan: RunPlan) -> Iterator[GaugeMetricFamily]:
        by_module = [names.MODULE_LABEL]
        parameters = GaugeMetricFamily(names.MODULE_PARAMETERS, "Parameters of the module.", labels=by_module)
        trainable = GaugeMetricFamily(names.MODULE_TRAINABLE, "Parameters that train now.", labels=by_module)
        info = GaugeMetricFamily(names.MODULE_INFO, "Always 1.", labels=[*by_module, names.OPTIMIZER_LABEL])
        rate = GaugeMetricFamily(names.LEARNING_RATE, "Learning rate of the last step.", labels=by_module)
        norm = GaugeMetricFamily(names.GRADIENT_NORM, "Gradient norm before clipping.", labels=by_module)
        for module in plan.modules:
            parameters.add_metric([module.name], module.numel)
            trainable.add_metric([module.name], 0 if self.tracker.is_frozen(module) else module.numel)
            info.add_metric([module.name, module.spec.optimizer.type if module.spec.optimizer else ""], 1)
            if (step := self.tracker.step) is not None:
                rate.add_metric([module.name], step.learning_rates[module.name])
                norm.add_metric([module.name], step.gradient_norms[module.name])
        yield from (parameters, trainable, info, rate, norm)

    def _evaluations(self, plan: RunPlan) -> Iterator[GaugeMetricFamily]:
        if (evaluation := self.tracker.evaluation) is not None:
            latest = GaugeMetricFamily(names.EVALUATION, "Latest evaluation.", labels=[names.METRIC_LABEL])
            for name, value in evaluation.metrics.items():
                latest.add_metric([short(name)], value)
            yield latest
        if (best := self.tracker.best) is not None:
            metric = plan.job.spec.evaluation.metric
            value = GaugeMetricFamily(names.BEST_EVALUATION, "Best evaluation.", labels=[names.METRIC_LABEL])
            value.add_metric([short(metric)], best.metrics[metric])
            step = GaugeMetricFamily(names.BEST_EVALUATION_STEP, "Its step.", labels=[names.METRIC_LABEL])
            step.add_metric([short(metric)], best.step)
            yield from (value, step)

    def _counters(self, plan: RunPlan) -> Iterator[CounterMetricFamily]:
        it = self.tracker
        samples = it.steps_executed * plan.job.spec.training.batch_size
        yield CounterMetricFamily(names.SAMPLES, "Samples trained on by this process.", samples)
        yield CounterMetricFamily(names.STEPS_EXECUTED, "Steps taken by this process.", it.steps_executed)
        yield CounterMetricFamily(names.NONFINITE_STEPS, "Steps skipped by this process.", it.nonfinite_steps)


@contextmanager
def serving(tracker: Tracker, port: int | None) -> Iterator[None]:
    """Serve the tracker's metrics on a port; on none if there is none."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(Exporter(tracker))
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise UserError(f"--metrics-port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def short(metric: str) -> str:
    """A metric's name without its `eval/`."""
    return metric.removeprefix("eval/")


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, value)
