"""Which weights are the output: those of the best checkpoint that is intact, or of the last step."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.formatting import pluralize
from finetune_trainer.training.checkpoint import Checkpoint, CheckpointManager, set_model_state_dict
from finetune_trainer.training.evaluation import HistoryEntry, MetricTracker
from finetune_trainer.training.state import TrainingContext, TrainState


@dataclass(frozen=True)
class SelectedWeights:
    """The weights that the model has now, and that become the output.

    Args:
        step: optimizer steps after which they were taken.
        description: the step and why it was selected.
        evaluation: the evaluation after that step, if there was one.
        notes: better checkpoints that could not be used, and why.
    """

    step: int
    description: str
    evaluation: HistoryEntry | None = None
    notes: tuple[str, ...] = ()


def select_weights(checkpoints: CheckpointManager, context: TrainingContext, state: TrainState) -> SelectedWeights:
    """Load the weights of the best evaluation into the model, if `checkpoint.keepBest` is set.

    A checkpoint that is damaged is left out, and so are those that were deleted because another one was better then.
    The last weights are in the model already.
    """
    tracker = MetricTracker(context.plan.job.spec.evaluation)
    candidates = list(state.history) if context.plan.job.spec.checkpoint.keep_best else []
    notes: list[str] = []
    while best := tracker.best(candidates):
        problem = None if best.step == state.step else _load_weights(checkpoints, context, best.step)
        if problem is None:
            rank = "the best" if not notes else "the best that is intact"
            value = f"{best.metrics[tracker.metric]:.4g}"
            description = f"step {best.step}, {rank} by {tracker.metric} ({value})"
            return SelectedWeights(best.step, description, best, tuple(notes))
        if not notes or checkpoints.store.path(best.step).exists():
            notes.append(f"the checkpoint of step {best.step} cannot be used for the output: {problem}")
        candidates.remove(best)
    last = state.history[-1] if state.last_evaluated_step == state.step else None
    reason = f": {tracker.metric} was never finite" if tracker.is_never_finite(state.history) else ""
    return SelectedWeights(state.step, f"step {state.step}, the last{reason}", last, tuple(notes))


def _load_weights(checkpoints: CheckpointManager, context: TrainingContext, step: int) -> str | None:
    """Load the weights of a checkpoint into the model.

    Returns:
        Why that is not possible, and the model is unchanged; None if they were loaded.
    """
    store = checkpoints.store
    if not store.path(step).exists():
        return f"{store.path(step)} is missing"
    if problem := store.find_problem(step):
        return f"{store.path(step)} is corrupt ({problem})"
    checkpoint = store.load_state(step)
    if missing := _frozen_names(checkpoint) - checkpoints.frozen.tensors.keys():
        was = "that was frozen then and is" if len(missing) == 1 else "that were frozen then and are"
        return f"it has no weights of {pluralize(len(missing), 'parameter')} {was} trained now"
    set_model_state_dict(context.model.base, store.load_weights(step), dict.fromkeys(_frozen_names(checkpoint), ""))
    return None


def _frozen_names(checkpoint: Checkpoint) -> set[str]:
    return set(checkpoint.run.frozen) if checkpoint.run else set()
