"""Whether checkpoints and output will fit onto the disk of the destination, checked before the first step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.errors import UserError
from finetune_trainer.formatting import format_bytes, pluralize
from finetune_trainer.training.checkpoint import CheckpointManager
from finetune_trainer.training.optimizers import state_layouts
from finetune_trainer.training.state import TrainingContext, TrainState

MIN_CHECKPOINTS = 2
"""A checkpoint is deleted only after the next one is complete."""


@dataclass(frozen=True)
class RequiredSpace:
    """Bytes that a run needs in its destination.

    Args:
        output: size of the model that is saved.
        checkpoint: size of one checkpoint, with all optimizer state.
        max_checkpoints: number of checkpoints that exist at the same time.
    """

    output: int
    checkpoint: int
    max_checkpoints: int

    @property
    def minimum(self) -> int:
        """Without this, the run cannot be completed."""
        return self.output + self.checkpoint * min(MIN_CHECKPOINTS, self.max_checkpoints)

    @property
    def maximum(self) -> int:
        """With this, the run can be completed whatever its evaluations are."""
        return self.output + self.checkpoint * self.max_checkpoints

    def describe(self) -> str:
        checkpoints = f"{pluralize(self.max_checkpoints, 'checkpoint')} of {format_bytes(self.checkpoint)}"
        return (
            f"up to {format_bytes(self.maximum)}: {checkpoints} and the output of {format_bytes(self.output)}, which "
            "is written before they are deleted"
        )


def check_disk_space(
    checkpoints: CheckpointManager,
    context: TrainingContext,
    state: TrainState,
    log: Callable[[str], None],
    free_bytes: Callable[[Path], int | None] | None = None,
) -> None:
    """Compare the space that a run needs with the free space of its destination.

    Space that its checkpoints use already counts as free. A quota may allow less than the file system reports.

    Raises:
        UserError: the output and the checkpoints cannot fit.
    """
    free = (free_bytes or get_free_bytes)(checkpoints.folder)
    if free is None:
        return
    needed = estimate_space(context, state)
    free += sum(path.stat().st_size for path in checkpoints.folder.rglob("*") if path.is_file())
    source = context.plan.job.spec.output.destination
    available = f"{format_bytes(free)} are free in {checkpoints.folder.parent.parent}"
    if free < needed.minimum:
        raise UserError(
            f"output.destination: {source}: {available}, but the run needs at least {format_bytes(needed.minimum)} "
            f"({needed.describe()}): free some space, or use a larger claim"
        )
    if free < needed.maximum:
        log(
            f"disk space may not suffice: {available}, and the run needs {needed.describe()}; lower checkpoint.keep, "
            "or free some space"
        )


def estimate_space(context: TrainingContext, state: TrainState) -> RequiredSpace:
    """The space that the rest of a run needs."""
    model = context.model
    buffers = sum(buffer.nbytes for buffer in model.base.buffers())
    weights, saved = {**dict(model.base.named_buffers()), **model.parameters}, model.output_dtypes.by_name
    output = sum(it.numel() * saved.get(name, it.dtype).itemsize for name, it in weights.items())
    layouts = state_layouts([module.plan for module in model.modules], model.parameters)
    trained = sum(
        parameter.nbytes + layouts[module.plan.name].numel(parameter) * 4
        for module in model.modules
        for parameter in module.parameters
    )
    return RequiredSpace(output, buffers + trained, _max_checkpoints(context, state))


def _max_checkpoints(context: TrainingContext, state: TrainState) -> int:
    """The latest ones, the one being written, and the best one; at most one for each step."""
    spec = context.plan.job.spec.checkpoint
    has_best = spec.keep_best and context.validation is not None
    remaining = context.plan.planned_steps - state.step
    if not has_best and spec.every_steps is not None:
        remaining = math.ceil(remaining / spec.every_steps)
    return max(1, min(spec.keep + 1 + has_best, remaining))


def get_free_bytes(folder: Path) -> int | None:
    """The free space for this process; None if the file system does not report it."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None
