"""A trial batch of each dataset before the first step.

A model checks some inputs only when it computes: a text without the token that it needs, an image of another size, ids
beyond its embedding. And the longest examples need the most memory. Both would end a run hours after its start, and an
exception would be taken for a crash and retried. The trial changes nothing: a run is the same bit for bit without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from finetune_trainer.data import Batch, Dataset
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.formatting import join_some
from finetune_trainer.training.assembly import TrainableModule
from finetune_trainer.training.device import explain_nondeterminism
from finetune_trainer.training.failures import is_caused_by_input
from finetune_trainer.training.freeze import set_train_mode
from finetune_trainer.training.rng import get_rng_state, set_rng_state
from finetune_trainer.training.state import TrainingContext, TrainState

PLAIN_TYPES = (bool, int, float, str, tuple, type(None))
"""Types of attributes that a forward pass may change, such as the longest sequence so far of a rotary embedding."""
MAX_MESSAGE_LENGTH = 500


@dataclass(frozen=True)
class Trial:
    """A batch that is tried.

    Args:
        dataset: its dataset.
        rows: indices of its rows in the dataset.
        compute: what is computed with the batch.
    """

    dataset: Dataset
    rows: Sequence[int]
    compute: Callable[[Batch], None]


def try_batches(context: TrainingContext, state: TrainState, on_substep_end: Callable[[], None]) -> None:
    """Compute with one micro-batch of each dataset, of the longest examples.

    Args:
        context: what the run consists of; unchanged afterwards.
        state: how far the run has come.
        on_substep_end: called after each batch.

    Raises:
        UserError: the model raised an exception; it names the rows.
        torch.OutOfMemoryError: a micro-batch does not fit into the memory of the GPU.
    """
    for trial in _trials(context, state):
        with unchanged(context):
            _run_trial(context, trial)
        on_substep_end()


def _trials(context: TrainingContext, state: TrainState) -> Iterator[Trial]:
    size = context.plan.job.spec.training.micro_batch_size
    modules = _largest_trainable(context.model.modules, state.step)

    def train(batch: Batch) -> None:
        _forward_backward(context, state, modules, batch)

    def predict(batch: Batch) -> None:
        context.model.forward.eval()
        with torch.no_grad(), context.device_config.autocast():
            context.task.predict(context.model.forward, batch)

    indexes = context.indexes
    yield Trial(context.train, indexes.train.longest(size), train)
    for dataset, index in ((context.validation, indexes.validation), (context.test, indexes.test)):
        if dataset is not None and index is not None:
            yield Trial(dataset, index.longest(size), predict)


def _largest_trainable(modules: Sequence[TrainableModule], step: int) -> tuple[TrainableModule, ...]:
    """The modules that are trainable in the step, from this one on, with the most trainable parameters."""
    starts = {step, *(module.plan.window.start for module in modules if module.plan.window.start > step)}
    candidates = [tuple(module for module in modules if start in module.plan.window) for start in sorted(starts)]
    return max(candidates, key=lambda trainable: sum(module.plan.numel for module in trainable))


def _forward_backward(
    context: TrainingContext, state: TrainState, modules: Sequence[TrainableModule], batch: Batch
) -> None:
    for module in modules:
        for parameter in module.parameters:
            parameter.requires_grad_(True)
    set_train_mode(context.model.forward)
    with context.device_config.autocast():
        loss = context.task.loss(context.model.forward, batch) / max(1, context.task.num_items(batch))
    torch.autograd.backward(loss * state.loss_scale.scale)


def _run_trial(context: TrainingContext, trial: Trial) -> None:
    try:
        _compute(context, trial, trial.rows)
    except Exception as error:
        if isinstance(error, RunError) or not is_caused_by_input(error):
            raise
        if explanation := explain_nondeterminism(error):
            raise explanation from error
        raise UserError(_describe(trial.dataset, _find_failing_rows(context, trial), error)) from error


def _compute(context: TrainingContext, trial: Trial, rows: Sequence[int]) -> None:
    batch = context.task.make_batch([trial.dataset[row] for row in rows], context.processors)
    trial.compute(context.device_config.move(batch))
    if context.device_config.is_cuda:
        torch.cuda.synchronize()


def _find_failing_rows(context: TrainingContext, trial: Trial) -> Sequence[int]:
    """The rows that fail by themselves, if there are such; else all of them."""
    return [row for row in trial.rows if _fails(context, trial, row)] or trial.rows


def _fails(context: TrainingContext, trial: Trial, row: int) -> bool:
    try:
        _compute(context, trial, [row])
    except Exception:  # noqa: BLE001 - after an assertion on a GPU, everything raises
        return True
    return False


def _describe(dataset: Dataset, rows: Sequence[int], error: Exception) -> str:
    """The message for an exception that the model raised for some rows."""
    places = join_some([dataset.locate(row) for row in rows], 3)
    text = " ".join(str(error).split())[:MAX_MESSAGE_LENGTH]
    return f"{dataset.origin.field_path}: the model cannot process {places}: {type(error).__name__}: {text}"


@contextmanager
def unchanged(context: TrainingContext) -> Iterator[None]:
    """Restore everything that a forward and backward pass changes: random state, buffers, gradients, modes."""
    model = context.model.forward
    rng_state = get_rng_state()
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    attributes = [(module, _plain_attributes(module)) for module in model.modules()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad).grad = grad
        for module, values in attributes:
            _restore_attributes(module, values)
    # After an exception on a GPU the device may be unusable.
    with torch.no_grad():
        for module, name, buffer, value in buffers:
            setattr(module, name, buffer.copy_(value))
    set_rng_state(rng_state)


def _plain_attributes(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, PLAIN_TYPES)}


def _restore_attributes(module: nn.Module, values: dict[str, object]) -> None:
    """Restore attributes, and `training` with them. Those that are new stay: they are caches."""
    for name, value in values.items():
        if vars(module).get(name) is not value:
            vars(module)[name] = value
