"""The training loop: optimizer steps, evaluations and checkpoints, each when due, until the end or a requested stop.

Values are read from the device once per optimizer step, never per micro-batch: loss and gradient norms, which are
reported and decide whether the step was finite, the number of items, and whether any process was asked to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from finetune_api.evaluation import Interval
from finetune_trainer.callbacks import Callback, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.data import (
    Batch,
    Dataset,
    Position,
    TrainBatchSampler,
    TrainDataSource,
    evaluation_batches,
    load_batches,
)
from finetune_trainer.errors import Interrupted, TrainingDiverged
from finetune_trainer.training.assembly import TrainableModule
from finetune_trainer.training.checkpoint import Checkpoint, CheckpointManager, get_model_state_dict
from finetune_trainer.training.evaluation import HistoryEntry, MetricTracker, describe_nonfinite_metrics, is_due
from finetune_trainer.training.freeze import set_train_mode, set_trainable
from finetune_trainer.training.gradients import add_regularization, clip_grads, get_grad_norms, unscale_grads
from finetune_trainer.training.optimizers import get_optimizer_state_dict, set_learning_rates
from finetune_trainer.training.rng import get_rng_state
from finetune_trainer.training.signals import StopFlag
from finetune_trainer.training.state import TrainingContext, TrainState
from finetune_trainer.training.timer import StepTimer
from finetune_trainer.training.trial import try_batches


class Trainer:
    """Trains from the step in `state` to the end of the plan.

    Args:
        context: what the run consists of.
        state: how far it has come; updated in place.
        checkpoints: where checkpoints are written.
        callback: receives the events.
        stop: requests a stop.
        before_save: called before each checkpoint, to flush what belongs to it to disk.
    """

    def __init__(
        self,
        context: TrainingContext,
        state: TrainState,
        checkpoints: CheckpointManager,
        callback: Callback,
        stop: StopFlag,
        *,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self.context, self.state, self.checkpoints = context, state, checkpoints
        self.callback, self.stop, self.before_save = callback, stop, before_save
        self.plan, self.spec = context.plan, context.plan.job.spec
        self.metric_tracker = MetricTracker(self.spec.evaluation)
        self.timer = StepTimer(state.step, state.elapsed)
        self.trainable: tuple[TrainableModule, ...] = ()
        self.last_saved_step, self.last_saved_elapsed = state.step, state.elapsed
        self.group = context.process_group
        self._is_stop_agreed = False

    def train(self) -> None:
        """Train until the plan is complete, early stopping applies, or a stop is requested.

        Raises:
            Interrupted: a stop was requested; a checkpoint was written.
            TrainingDiverged: too many steps were not finite.
            UserError: the model cannot process a trial batch.
        """
        if not self.is_done():
            try_batches(self.context, self.state, self.callback.on_substep_end)
        with closing(self._train_source()) as source:
            while True:
                self._evaluate_if_due()
                self._save_if_due()
                self._report_saved()
                if self.stop.immediate:
                    self.stop.defer()
                if self.is_done():
                    self._check_divergence(self.state.step)
                    self._save_last()
                    return
                if self._must_stop():
                    self._interrupt()
                self.timer.start_step()
                self._train_step(source.next_step(), source.position())

    def _must_stop(self) -> bool:
        """Whether a stop was requested. Several processes must agree, and do so in the value that each step reads."""
        return self._is_stop_agreed or (self.group.size == 1 and self.stop.requested)

    def is_done(self) -> bool:
        """Whether no steps are left."""
        is_complete = self.state.step >= self.plan.planned_steps
        return is_complete or self.metric_tracker.should_stop_early(self.state.history)

    # Steps

    def _train_step(self, micro_batches: list[Batch], position: Mapping[str, Any]) -> None:
        """Train one step. `position` is that of the data source after it."""
        context, step = self.context, self.state.step
        self._freeze_and_unfreeze(step)
        eval_history = self.metric_tracker.eval_history(self.state.history)
        rates = {module.name: module.learning_rate(step, eval_history) for module in self.plan.modules}
        set_learning_rates(context.optimizers, rates)
        num_items = sum(map(context.task.num_items, micro_batches))
        loss = self._forward_backward(micro_batches, num_items)
        unscale_grads(self.trainable, self.state.loss_scale.scale)
        add_regularization(self.trainable)
        norms = get_grad_norms(self.trainable, context.device_config.device)
        clip_grads(self.trainable, norms, self.spec.training.clip_grad_norm)
        mean_loss, stops, items, *module_norms = self._read_values(loss, num_items, norms)
        is_finite = all(map(math.isfinite, (mean_loss, *module_norms)))
        if is_finite:
            for optimizer in context.optimizers:
                optimizer.step()
        self._zero_grad()
        self._is_stop_agreed = stops > 0
        self.state.position = position
        self._end_step(mean_loss, module_norms, rates, is_finite, int(items))

    def _read_values(self, loss: Tensor, num_items: int, norms: Tensor) -> list[float]:
        """The only synchronization with the device in a step.

        Returns:
            The loss, the number of processes that were asked to stop, the number of items, and the norm of each module.
        """
        local = torch.stack([loss, loss.new_full((), float(self.stop.requested)), loss.new_full((), float(num_items))])
        values: list[float] = torch.cat([self.group.sum(local), norms]).tolist()
        return values

    def _forward_backward(self, micro_batches: list[Batch], num_items: int) -> Tensor:
        """Accumulate the gradients of one optimizer step.

        Args:
            micro_batches: the micro-batches of the step.
            num_items: number of loss items in all of them.

        Returns:
            The loss: the mean over the items of all micro-batches; a scalar on the device.
        """
        context = self.context
        num_items = max(1, num_items)  # a batch without items has loss 0
        total = torch.zeros((), device=context.device_config.device)
        for batch in micro_batches:
            with context.device_config.autocast():
                loss = context.task.loss(context.model.forward, context.device_config.move(batch)) / num_items
            torch.autograd.backward(loss * self.state.loss_scale.scale)
            total += loss.detach()
            self.callback.on_substep_end()
        return total

    def _freeze_and_unfreeze(self, step: int) -> None:
        trainable = tuple(module for module in self.context.model.modules if step in module.plan.window)
        if trainable != self.trainable:
            set_trainable(self.context.model.modules, trainable, self.context.optimizers)
            self.trainable = trainable
            set_train_mode(self.context.model.forward)

    def _zero_grad(self) -> None:
        for module in self.trainable:
            for parameter in module.parameters:
                parameter.grad = None

    def _end_step(
        self, loss: float, norms: list[float], rates: Mapping[str, float], is_finite: bool, num_items: int
    ) -> None:
        """Update the state, and report the step."""
        trainable_norms = dict(zip((module.plan.name for module in self.trainable), norms, strict=True))
        state = self.state
        state.step += 1
        is_overflow = not is_finite and math.isfinite(loss) and state.loss_scale.can_be_halved
        state.skipped = state.skipped.after_step(is_finite=is_finite, is_overflow=is_overflow)
        state.loss_scale.update(is_finite)
        self.timer.end_step(state.step)
        state.elapsed = self.timer.elapsed
        if not is_finite:
            reason = _describe_nonfinite(loss, trainable_norms)
            self.callback.on_message(f"skipping step {state.step} for all modules: {reason}")
        self.callback.on_step_end(self._step_record(loss, trainable_norms, rates, is_finite, num_items))
        if not is_finite:
            self._check_divergence(self.plan.planned_steps)

    def _check_divergence(self, num_steps: int) -> None:
        """End a run of `num_steps` steps of which too many were not finite.

        Raises:
            TrainingDiverged: it has diverged.
        """
        if divergence := self.state.skipped.describe_divergence(num_steps):
            raise TrainingDiverged(
                f"{divergence} (at step {self.state.step}); lower the learning rates, set training.clipGradNorm, or "
                "set training.precision to FP32"
            )

    def _step_record(
        self,
        loss: float,
        trainable_norms: Mapping[str, float],
        rates: Mapping[str, float],
        is_finite: bool,
        num_items: int,
    ) -> StepRecord:
        step, plan = self.state.step, self.plan
        return StepRecord(
            step=step,
            planned_steps=plan.planned_steps,
            epoch=step / plan.steps_per_epoch,
            loss=loss,
            learning_rates=rates,
            gradient_norms={module.name: trainable_norms.get(module.name, 0.0) for module in plan.modules},
            frozen={module.name: module.name not in trainable_norms for module in plan.modules},
            samples_per_second=self.spec.training.batch_size / self.timer.mean_duration,
            seconds=self.timer.last_duration,
            estimated_completion_time=self.timer.estimate_completion(plan.planned_steps),
            skipped=not is_finite,
            num_items=num_items,
        )

    # Data

    def _train_source(self) -> TrainDataSource:
        training = self.spec.training
        sampler = TrainBatchSampler(
            num_samples=len(self.context.train),
            batch_size=training.batch_size,
            micro_batch_size=training.micro_batch_size,
            seed=training.seed,
            num_steps=self.plan.planned_steps - self.state.step,
            start=Position(**self.state.position),
        )
        return TrainDataSource(sampler, lambda indices: self._load_batches(self.context.train, indices))

    def _load_batches(self, dataset: Dataset, batch_indices: Iterable[list[int]]) -> Generator[Batch]:
        task, processors = self.context.task, self.context.processors
        return load_batches(
            dataset,
            batch_indices,
            lambda samples: task.make_batch(samples, processors),
            num_workers=self.spec.data.workers,
            pin_memory=self.context.device_config.is_cuda,
        )

    # Evaluation

    def _evaluate_if_due(self) -> None:
        step = self.state.step
        if self.context.validation is None or self.state.last_evaluated_step == step:
            return
        if step == 0 or is_due(self.spec.evaluation.every, step, self.plan.steps_per_epoch) or self.is_done():
            self._evaluate(self.context.validation)

    def _evaluate(self, validation: Dataset) -> None:
        start = time.perf_counter()
        metrics = self._compute_metrics(validation)
        state = self.state
        state.history.append(HistoryEntry(state.step, metrics))
        seconds = time.perf_counter() - start
        epoch = state.step / self.plan.steps_per_epoch
        is_best = self._best_step() == state.step
        if problem := describe_nonfinite_metrics(metrics):
            self.callback.on_message(f"evaluation at step {state.step}: {problem}")
        self.callback.on_evaluate(EvaluationRecord(state.step, epoch, metrics, is_best, seconds))

    def evaluate(self) -> dict[str, float]:
        """The metrics of the current weights on the validation set; not part of the history.

        Raises:
            Interrupted: a stop was requested.
        """
        assert self.context.validation is not None, "there is a validation set"
        return self._compute_metrics(self.context.validation)

    def test(self) -> TestRecord:
        """Evaluate the current weights on the test set.

        Raises:
            Interrupted: a stop was requested; the checkpoint after the last step exists.
        """
        assert self.context.test is not None, "there is a test set"
        start = time.perf_counter()
        metrics = self._compute_metrics(self.context.test)
        test_metrics = {f"test/{name.removeprefix('eval/')}": value for name, value in metrics.items()}
        if problem := describe_nonfinite_metrics(test_metrics):
            self.callback.on_message(f"test set: {problem}")
        record = TestRecord(self.state.step, test_metrics, time.perf_counter() - start)
        self.callback.on_test(record)
        return record

    def _compute_metrics(self, dataset: Dataset) -> dict[str, float]:
        context = self.context
        context.model.forward.eval()
        with torch.no_grad(), context.device_config.autocast():
            metrics = context.task.evaluate(context.model.forward, self._evaluation_batches(dataset))
        set_train_mode(context.model.forward)
        return metrics

    def _evaluation_batches(self, dataset: Dataset) -> Iterator[Batch]:
        """The batches of an evaluation, on the device. A requested stop interrupts it; it is repeated on resume."""
        batch_size, seed = self.spec.training.micro_batch_size, self.spec.data.split_seed
        batch_indices = evaluation_batches(len(dataset), batch_size, seed)
        with closing(self._load_batches(dataset, batch_indices)) as batches:
            for done, batch in enumerate(batches):
                if self.group.any(self.stop.requested):
                    self._interrupt()
                self.callback.on_prediction_step(done, len(batch_indices))
                yield self.context.device_config.move(batch)
        self.callback.on_prediction_step(len(batch_indices), len(batch_indices))

    def _best_step(self) -> int | None:
        best = self.metric_tracker.best(self.state.history)
        return None if best is None else best.step

    # Checkpoints

    def _save_if_due(self) -> None:
        step = self.state.step
        is_best = self.spec.checkpoint.keep_best and self._best_step() == step
        if step > self.last_saved_step and (is_best or self._is_checkpoint_due(step)):
            self._save()

    def _is_checkpoint_due(self, step: int) -> bool:
        spec = self.spec.checkpoint
        if spec.every_seconds:
            return self.state.elapsed - self.last_saved_elapsed >= spec.every_seconds
        every = Interval(steps=spec.every_steps) if spec.every_steps else Interval(epochs=spec.every_epochs or 1.0)
        return is_due(every, step, self.plan.steps_per_epoch)

    def _save_last(self) -> None:
        """The end of training is durable: whatever fails after it, the next attempt only tests and exports."""
        if self.state.step > self.last_saved_step:
            self._save()
        self._finish_saving()

    def _save(self) -> None:
        self._finish_saving()
        self.before_save()
        self.checkpoints.save(self.checkpoint(), self._best_step() if self.spec.checkpoint.keep_best else None)
        self.last_saved_step, self.last_saved_elapsed = self.state.step, self.state.elapsed

    def _report_saved(self) -> None:
        """Report the checkpoint that was completed in the background, or its error."""
        if record := self.checkpoints.poll():
            self.callback.on_save(record)

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is written in the background."""
        if record := self.checkpoints.wait():
            self.callback.on_save(record)

    def _interrupt(self) -> None:
        step = self.state.step
        if step > self.last_saved_step:
            self._save()
        self._finish_saving()
        if step == 0:
            raise Interrupted("interrupted before the first step")
        raise Interrupted(
            f"interrupted after step {step} of {self.plan.planned_steps}; the next attempt resumes from this step"
        )

    def checkpoint(self) -> Checkpoint:
        """A checkpoint of the current step."""
        context, state = self.context, self.state
        return Checkpoint(
            step=state.step,
            position=state.position,
            history=tuple(state.history),
            elapsed=state.elapsed,
            skipped_steps=asdict(state.skipped),
            loss_scale=(state.loss_scale.scale, state.loss_scale.good_steps),
            rng_state=get_rng_state(),
            weights=get_model_state_dict(context.model.base),
            optimizer=get_optimizer_state_dict(context.optimizers, context.model.base),
        )


def _describe_nonfinite(loss: float, norms: Mapping[str, float]) -> str:
    values = [f"the gradient norm of {name!r} is {norm}" for name, norm in norms.items() if not math.isfinite(norm)]
    return " and ".join(values if math.isfinite(loss) else [f"the loss is {loss}", *values])
