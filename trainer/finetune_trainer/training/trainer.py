"""The loop: optimizer steps, evaluations and checkpoints, each when it is due, until the run ends or is asked to stop.

One value is read from the device per optimizer step, never per micro-batch: whether everything was finite, and with it
loss and norms, which are reported.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from finetune_api.evaluation import Interval
from finetune_trainer.callbacks import Callback, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.data import Batch, Dataset, TrainBatchSampler, evaluation_batches, load_batches
from finetune_trainer.errors import Interrupted, UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.tasks import Processors, Task
from finetune_trainer.training import checkpoint as saved
from finetune_trainer.training import rng
from finetune_trainer.training.checkpoint import Checkpoint, Checkpoints
from finetune_trainer.training.device import Compute, LossScale
from finetune_trainer.training.evaluation import Evaluation, Judge, is_due
from finetune_trainer.training.gradients import Part, clip, norms, penalize, unscale
from finetune_trainer.training.optimizers import forget, set_learning_rates
from finetune_trainer.training.signals import Stop

HOPELESS = 50
"""Steps in a row that were not finite, after which no later one will be; FP16 needs at most 16 to find its scale."""

RECENT = 20
"""Steps over which the throughput is averaged."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of; nothing here changes but weights and optimizer state."""

    plan: RunPlan
    task: Task
    model: PreTrainedModel
    processors: Processors
    train: Dataset
    validation: Dataset | None
    parts: tuple[Part, ...]
    optimizers: list[Optimizer]
    compute: Compute
    test: Dataset | None = None


@dataclass
class Progress:
    """How far a run has come: what a checkpoint holds beside weights, optimizer and random state."""

    loss_scale: LossScale
    step: int = 0
    history: list[Evaluation] = field(default_factory=list)
    elapsed: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    @property
    def evaluated(self) -> int:
        return self.history[-1].step if self.history else -1


class Loop:
    """Goes from wherever `progress` stands to the end of the plan.

    Args:
        setup: what the run is made of.
        progress: where it stands; the loop moves it on.
        checkpoints: where it is saved.
        callback: hears about it.
        stop: says when to stop early.

    `before_save` is called before each checkpoint, to bring what belongs to it to disk.
    """

    def __init__(
        self, setup: Setup, progress: Progress, checkpoints: Checkpoints, callback: Callback, stop: Stop
    ) -> None:
        self.setup, self.progress, self.checkpoints = setup, progress, checkpoints
        self.callback, self.stop = callback, stop
        self.before_save: Callable[[], None] = lambda: None
        self.plan, self.spec = setup.plan, setup.plan.job.spec
        self.judge = Judge(self.spec.evaluation)
        self.clock = Clock(progress.step, progress.elapsed)
        self.active: tuple[Part, ...] = ()
        self.saved = progress.step

    def run(self) -> None:
        """Train until the plan is done, patience is at an end, or the run is asked to stop.

        Raises:
            Interrupted: it was asked to stop; a checkpoint was written.
        """
        with closing(self._micro_batches()) as stream:
            while True:
                self._evaluate_if_due()
                self._save_if_due()
                if self.is_done():
                    self._save_before_test()
                    return
                if self.stop.requested:
                    self._interrupt()
                self.clock.begin()
                self._step(list(islice(stream, self.spec.training.batch_size // self._micro_batch_size)))

    def is_done(self) -> bool:
        """Whether no step is left to take."""
        return self.progress.step >= self.plan.planned_steps or self.judge.is_exhausted(self.progress.history)

    # -- one step

    def _step(self, micro_batches: list[Batch]) -> None:
        step = self.progress.step
        self._freeze_and_thaw(step)
        eval_history = self.judge.eval_history(self.progress.history)
        rates = {module.name: module.learning_rate(step, eval_history) for module in self.plan.modules}
        set_learning_rates(self.setup.optimizers, rates)
        loss = self._backward(micro_batches)
        unscale(self.active, self.progress.loss_scale.value)
        penalize(self.active)
        measured = norms(self.active)
        clip(self.active, measured, self.spec.training.clip_grad_norm)
        values: list[float] = torch.cat([loss.reshape(1), measured.to(loss.device)]).tolist()
        finite = all(map(math.isfinite, values))
        if finite:
            for optimizer in self.setup.optimizers:
                optimizer.step()
        self._clear()
        self.progress.loss_scale.update(finite)
        self._advance(values, rates, finite)

    def _backward(self, micro_batches: list[Batch]) -> Tensor:
        """Accumulate the gradients of one optimizer step; its loss is the mean over the terms of all micro-batches."""
        setup = self.setup
        terms = max(1, sum(map(setup.task.num_items, micro_batches)))  # a loss over nothing is zero
        total = torch.zeros((), device=setup.compute.device)
        for batch in micro_batches:
            with setup.compute.autocast():
                loss = setup.task.loss(setup.model, setup.compute.move(batch)) / terms
            torch.autograd.backward(loss * self.progress.loss_scale.value)
            total += loss.detach()
        return total

    def _freeze_and_thaw(self, step: int) -> None:
        """Frozen means no gradient, no decay, no optimizer state."""
        active = tuple(part for part in self.setup.parts if step in part.plan.window)
        if active == self.active:
            return
        for part in self.setup.parts:
            for parameter in part.parameters:
                parameter.requires_grad_(part in active)
            if part not in active:
                forget(self.setup.optimizers, part.parameters)
        self.active = active
        set_training(self.setup.model)

    def _clear(self) -> None:
        for part in self.active:
            for parameter in part.parameters:
                parameter.grad = None

    def _advance(self, values: list[float], rates: Mapping[str, float], finite: bool) -> None:
        active = [part.plan.name for part in self.active]
        measured = dict(zip(active, values[1:], strict=True))
        progress, plan = self.progress, self.plan
        progress.step += 1
        progress.skipped_steps += not finite
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        self.clock.end(progress.step)
        progress.elapsed = self.clock.elapsed
        if not finite:
            self.callback.on_message(
                f"step {progress.step} was skipped for all modules: {_culprits(values[0], measured)}"
            )
        self.callback.on_step_end(
            StepRecord(
                step=progress.step,
                planned_steps=plan.planned_steps,
                epoch=progress.step / plan.steps_per_epoch,
                loss=values[0],
                learning_rates=rates,
                gradient_norms={module.name: measured.get(module.name, 0.0) for module in plan.modules},
                frozen={module.name: module.name not in active for module in plan.modules},
                samples_per_second=self.spec.training.batch_size / self.clock.recent,
                seconds=self.clock.last,
                estimated_completion_time=self.clock.completion(plan.planned_steps),
                skipped=not finite,
            )
        )
        if progress.skipped_in_a_row == HOPELESS:
            raise UserError(
                f"the last {HOPELESS} steps were not finite: {_culprits(values[0], measured)}; "
                "lower the learning rates, set clipGradNorm, or use precision FP32"
            )

    # -- data

    @property
    def _micro_batch_size(self) -> int:
        return self.spec.training.micro_batch_size

    def _micro_batches(self) -> Generator[Batch]:
        training = self.spec.training
        order = TrainBatchSampler(
            len(self.setup.train),
            training.batch_size,
            self._micro_batch_size,
            training.seed,
            self.progress.step,
            self.plan.planned_steps,
        )
        return self._batches(self.setup.train, order)

    def _batches(self, data: Dataset, order: Iterable[list[int]]) -> Generator[Batch]:
        task, processors = self.setup.task, self.setup.processors
        workers, pin = self.spec.data.workers, self.setup.compute.is_gpu
        return load_batches(data, order, lambda rows: task.collate(rows, processors), workers, pin)

    # -- evaluation

    def _evaluate_if_due(self) -> None:
        step = self.progress.step
        due = is_due(self.spec.evaluation.every, step, self.plan.steps_per_epoch)
        if self.setup.validation is None or self.progress.evaluated == step:
            return
        if step == 0 or due or self.is_done():
            self._evaluate(self.setup.validation)

    def _evaluate(self, validation: Dataset) -> None:
        started = time.perf_counter()
        metrics = self._measure(validation)
        progress = self.progress
        progress.history.append(Evaluation(progress.step, metrics))
        best = self.judge.best(progress.history)
        seconds = time.perf_counter() - started
        is_best = best is not None and best.step == progress.step
        epoch = progress.step / self.plan.steps_per_epoch
        self.callback.on_evaluate(EvaluationRecord(progress.step, epoch, metrics, is_best, seconds))

    def test(self) -> TestRecord:
        """Evaluate the test set on the weights that the model has now.

        Raises:
            Interrupted: it was asked to stop; the checkpoint after the last step is there.
        """
        assert self.setup.test is not None, "there is a test set"
        started = time.perf_counter()
        metrics = {f"test/{name.removeprefix('eval/')}": it for name, it in self._measure(self.setup.test).items()}
        record = TestRecord(self.progress.step, metrics, time.perf_counter() - started)
        self.callback.on_test(record)
        return record

    def _measure(self, data: Dataset) -> dict[str, float]:
        self.setup.model.train(False)
        with torch.no_grad(), self.setup.compute.autocast():
            metrics = self.setup.task.evaluate(self.setup.model, self._watched(data))
        set_training(self.setup.model)
        return metrics

    def _watched(self, data: Dataset) -> Iterator[Batch]:
        """A data set's batches; a long evaluation can be interrupted too, and is done again on resume."""
        order = evaluation_batches(len(data), self._micro_batch_size, self.spec.data.split_seed)
        with closing(self._batches(data, order)) as stream:
            for done, batch in enumerate(stream):
                if self.stop.requested:
                    self._interrupt()
                self.callback.on_prediction_step(done, len(order))
                yield self.setup.compute.move(batch)
        self.callback.on_prediction_step(len(order), len(order))

    # -- checkpoints

    def _save_if_due(self) -> None:
        step, spec = self.progress.step, self.spec.checkpoint
        every = Interval(steps=spec.every_steps) if spec.every_steps else Interval(epochs=spec.every_epochs or 1.0)
        best = self.judge.best(self.progress.history) if spec.keep_best else None
        is_best = best is not None and best.step == step
        if step > self.saved and (is_best or is_due(every, step, self.plan.steps_per_epoch)):
            self._save()

    def _save_before_test(self) -> None:
        """The test is of the best weights, which are no checkpoint to go on from; this one is."""
        if self.setup.test is not None and self.progress.step > self.saved:
            self._save()

    def _save(self) -> None:
        best = self.judge.best(self.progress.history) if self.spec.checkpoint.keep_best else None
        self.before_save()
        record = self.checkpoints.save(self.checkpoint())
        self.checkpoints.prune(best.step if best else None)
        self.saved = record.step
        self.callback.on_save(record)

    def _interrupt(self) -> None:
        step = self.progress.step
        if step > self.saved:
            self._save()
        if step == 0:
            raise Interrupted("interrupted before the first step")
        raise Interrupted(
            f"interrupted after step {step} of {self.plan.planned_steps}; a checkpoint lets it go on from there"
        )

    def checkpoint(self) -> Checkpoint:
        """Everything about this moment."""
        setup, progress = self.setup, self.progress
        epoch, batch = divmod(progress.step, self.plan.steps_per_epoch)
        return Checkpoint(
            step=progress.step,
            epoch=epoch,
            batch=batch,
            train_samples=len(setup.train),
            history=tuple(progress.history),
            elapsed=progress.elapsed,
            skipped_steps=progress.skipped_steps,
            loss_scale=(progress.loss_scale.value, progress.loss_scale.good_steps),
            random=rng.capture(),
            spec=self.spec.manifest(),
            attempt=self.checkpoints.attempt,
            weights=saved.weights_of(setup.model),
            optimizer=saved.optimizer_state(setup.optimizers, setup.model),
        )


def set_training(model: nn.Module) -> None:
    """Training mode, in which what is frozen keeps its running statistics too, as those of batch normalization.

    They belong to whoever owns the weights beside them or, where there are none, around them. Dropout stays on in a
    frozen module: it changes nothing there, and what learns from its output is meant to be disturbed.
    """
    model.train()
    parts = dict(model.named_modules())
    for name, part in parts.items():
        if "running_mean" in dict(part.named_buffers(recurse=False)):
            part.train(any(weight.requires_grad for weight in _weights_around(name, parts)))


def _weights_around(name: str, parts: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """The weights of this part, or of the smallest part around it that has any."""
    weights = list(parts[name].parameters())
    return weights if weights or not name else _weights_around(name.rpartition(".")[0], parts)


class Clock:
    """How fast a run goes, and when it will be done."""

    def __init__(self, step: int, elapsed: float) -> None:
        self._first, self._before = step, elapsed
        self._start = self._began = time.perf_counter()
        self._recent: deque[float] = deque(maxlen=RECENT)

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def end(self, step: int) -> None:
        """A step is done."""
        self._recent.append(time.perf_counter() - self._began)
        self._step = step

    @property
    def last(self) -> float:
        return self._recent[-1]

    @property
    def recent(self) -> float:
        """Seconds a step takes."""
        return sum(self._recent) / len(self._recent)

    @property
    def elapsed(self) -> float:
        return self._before + time.perf_counter() - self._start

    def completion(self, total: int) -> datetime:
        """When the last step is expected, at the pace so far, evaluations and checkpoints included."""
        done = self._step - self._first
        pace = (time.perf_counter() - self._start) / done
        return datetime.now(UTC) + timedelta(seconds=pace * (total - self._step))


def _culprits(loss: float, measured: Mapping[str, float]) -> str:
    odd = [f"the gradient norm of {name} is {norm}" for name, norm in measured.items() if not math.isfinite(norm)]
    return " and ".join(odd if math.isfinite(loss) else [f"the loss is {loss}", *odd])
