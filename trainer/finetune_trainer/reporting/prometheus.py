"""The Prometheus metrics of a run, and the HTTP server that serves them.

A collector builds the metrics when they are scraped; between scrapes they cost the training loop nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api import trainer_metrics as names
from finetune_trainer.errors import UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.reporting.tracker import StatusTracker, strip_eval_prefix


class StatusCollector(Collector):
    """The state of a tracker as Prometheus metrics."""

    def __init__(self, tracker: StatusTracker) -> None:
        self.tracker = tracker

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        if self.tracker.plan is None:
            return
        yield from self._progress(self.tracker.plan)
        yield from self._modules(self.tracker.plan)
        yield from self._evaluations(self.tracker.plan)
        yield from self._counters(self.tracker.plan)

    def _progress(self, plan: RunPlan) -> Iterator[GaugeMetricFamily]:
        it = self.tracker
        yield GaugeMetricFamily(names.STEP, "Optimizer steps done.", it.steps_done)
        yield GaugeMetricFamily(names.PLANNED_STEPS, "Optimizer steps planned.", plan.planned_steps)
        yield GaugeMetricFamily(names.EPOCH, "Epochs done.", it.epoch)
        yield GaugeMetricFamily(
            names.SKIPPED_STEPS,
            "Optimizer steps of all attempts that were skipped because loss or gradients were not finite.",
            it.skipped_steps,
        )
        if it.step is not None:
            yield GaugeMetricFamily(names.LOSS, "Training loss of the last step.", it.step.loss)
            yield GaugeMetricFamily(names.SAMPLES_PER_SECOND, "Training throughput.", it.step.samples_per_second)
            if it.step.estimated_completion_time:
                completion = it.step.estimated_completion_time.timestamp()
                yield GaugeMetricFamily(
                    names.ESTIMATED_COMPLETION_TIME, "Estimated Unix time of the last step.", completion
                )
        if it.step_time is not None:
            timestamp = it.step_time.timestamp()
            yield GaugeMetricFamily(names.LAST_STEP_TIME, "Unix time when the last step ended.", timestamp)
        if it.checkpoint is not None:
            yield GaugeMetricFamily(names.LAST_CHECKPOINT_STEP, "Step of the last checkpoint.", it.checkpoint.step)
            timestamp = it.checkpoint.time.timestamp()
            yield GaugeMetricFamily(
                names.LAST_CHECKPOINT_TIME, "Unix time when the last checkpoint was complete.", timestamp
            )

    def _modules(self, plan: RunPlan) -> Iterator[GaugeMetricFamily]:
        labels = [names.MODULE_LABEL]
        parameters = GaugeMetricFamily(names.MODULE_PARAMETERS, "Parameters of the module.", labels=labels)
        trainable = GaugeMetricFamily(
            names.MODULE_TRAINABLE, "Parameters of the module that are trainable now.", labels=labels
        )
        info = GaugeMetricFamily(
            names.MODULE_INFO, "Optimizer of the module; always 1.", labels=[*labels, names.OPTIMIZER_LABEL]
        )
        rate = GaugeMetricFamily(names.LEARNING_RATE, "Learning rate of the last step.", labels=labels)
        norm = GaugeMetricFamily(
            names.GRADIENT_NORM, "L2 gradient norm of the last step, before clipping.", labels=labels
        )
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
            latest = GaugeMetricFamily(
                names.EVALUATION, "Metrics of the latest evaluation.", labels=[names.METRIC_LABEL]
            )
            for name, value in evaluation.metrics.items():
                latest.add_metric([strip_eval_prefix(name)], value)
            yield latest
        if (best := self.tracker.best) is not None:
            metric = plan.job.spec.evaluation.metric
            labels = [names.METRIC_LABEL]
            best_value = GaugeMetricFamily(names.BEST_EVALUATION, "Best value of evaluation.metric.", labels=labels)
            best_value.add_metric([strip_eval_prefix(metric)], best.metrics[metric])
            best_step = GaugeMetricFamily(names.BEST_EVALUATION_STEP, "Step of the best evaluation.", labels=labels)
            best_step.add_metric([strip_eval_prefix(metric)], best.step)
            yield from (best_value, best_step)

    def _counters(self, plan: RunPlan) -> Iterator[CounterMetricFamily]:
        it = self.tracker
        samples = it.steps_executed * plan.job.spec.training.batch_size
        yield CounterMetricFamily(names.SAMPLES, "Training samples processed by this process.", samples)
        yield CounterMetricFamily(names.STEPS_EXECUTED, "Optimizer steps taken by this process.", it.steps_executed)
        yield CounterMetricFamily(
            names.NONFINITE_STEPS,
            "Optimizer steps skipped by this process because loss or gradients were not finite.",
            it.nonfinite_steps,
        )


@contextmanager
def serve_metrics(tracker: StatusTracker, port: int | None) -> Iterator[None]:
    """Serve the metrics of a tracker over HTTP within the context; without a port, serve nothing.

    Raises:
        UserError: the port cannot be opened.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(StatusCollector(tracker))
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
