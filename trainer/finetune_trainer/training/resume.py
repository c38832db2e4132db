"""Decides whether a run resumes from its checkpoints, and restores it.

A run resumes by itself if its spec (the fields with an effect on the result), its data and its model are the same as
before. Otherwise it ends with a message that names each difference, and with what can be done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from finetune_api.effects import Effect
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some, pluralize
from finetune_trainer.planning.prepare import PreparedRun
from finetune_trainer.training.checkpoint import (
    Checkpoint,
    CheckpointManager,
    FrozenWeights,
    RunRecord,
    Segment,
    set_model_state_dict,
)
from finetune_trainer.training.checkpoint.differences import diff_specs, join_changes
from finetune_trainer.training.checkpoint.fingerprints import fingerprint_processors, fingerprint_run
from finetune_trainer.training.checkpoint.weights import check_frozen
from finetune_trainer.training.device import LossScale
from finetune_trainer.training.divergence import SkippedSteps
from finetune_trainer.training.dtypes import widen_weights
from finetune_trainer.training.evaluation import HistoryEntry
from finetune_trainer.training.failures import forget_failure
from finetune_trainer.training.optimizers import set_optimizer_state_dict, state_layouts
from finetune_trainer.training.rng import set_rng_state
from finetune_trainer.training.state import TrainingContext, TrainState
from finetune_trainer.training.stored_runs import check_no_earlier_format, list_stored_runs
from finetune_trainer.training.versions import package_versions

FRESH = "start over with --fresh (on a cluster: recreate the job)"


@dataclass(frozen=True)
class ResumeMode:
    """What to do with the checkpoints of the run.

    Args:
        resume: continue from them although settings have changed.
        fresh: delete them and start from the beginning.
    """

    resume: bool = False
    fresh: bool = False


def build_record(prepared: PreparedRun, attempt: int) -> RunRecord:
    """The record of a run that starts from the beginning."""
    plan = prepared.plan
    segment = Segment(0, plan.job.spec.manifest(), package_versions())
    samples = {"train": len(prepared.train)}
    samples |= {"validation": len(prepared.validation)} if prepared.validation else {}
    samples |= {"test": len(prepared.test)} if prepared.test else {}
    return RunRecord(plan.job.name, attempt, (segment,), fingerprint_run(prepared), samples)


def find_checkpoint(
    checkpoints: CheckpointManager, record: RunRecord, planned_steps: int, mode: ResumeMode, log: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint from which a run resumes, without its tensors; None if it starts from the beginning.

    Args:
        record: the record of the run as it is now.
        planned_steps: the number of steps of the run as it is now.

    Raises:
        UserError: the spec, the data or the model have changed since it was written.
    """
    if mode.fresh:
        checkpoints.clear()
        forget_failure(checkpoints.folder)
    report_other_runs(checkpoints, log)
    step = checkpoints.find_latest(log)
    if step is None:
        if not mode.fresh:
            check_no_earlier_format(checkpoints.folder.parent)
        if mode.resume:
            log("there is no checkpoint to resume from; starting at step 0")
        return None
    checkpoint = checkpoints.store.load_state(step)
    _check_same_position(checkpoint, record)
    _check_same_content(checkpoint, record)
    _check_same_settings(checkpoint, record, mode)
    if step > planned_steps:
        raise UserError(
            f"training: the checkpoint of step {step} is after the last step of the job, {planned_steps}: train longer "
            f"(training.epochs or training.steps), or {FRESH}"
        )
    return checkpoint


def report_other_runs(checkpoints: CheckpointManager, log: Callable[[str], None]) -> None:
    """Name the checkpoints of other runs in the same destination, which only take up space."""
    others = [run for run in list_stored_runs(checkpoints.folder.parent) if run.folder != checkpoints.folder]
    if others:
        log(
            f"{checkpoints.folder.parent} also has checkpoints of {pluralize(len(others), 'other run')}: "
            f"{join_some([run.describe() for run in others], 4)}; to remove them: finetune clean JOB.yaml"
        )


def _run(checkpoint: Checkpoint) -> RunRecord:
    assert checkpoint.run is not None, "a checkpoint that was loaded has it"
    return checkpoint.run


def _check_same_position(checkpoint: Checkpoint, record: RunRecord) -> None:
    if changes := diff_specs(_run(checkpoint).spec, record.spec, Effect.POSITION):
        raise UserError(
            f"{join_changes(changes)}: changed since the checkpoint of step {checkpoint.step} was written, and it "
            f"determines which data belongs to which step: restore the value, or {FRESH}"
        )


def _check_same_content(checkpoint: Checkpoint, record: RunRecord) -> None:
    before = _run(checkpoint)
    differences = before.fingerprints.describe_differences(record.fingerprints, before.samples, record.samples)
    if not differences:
        return
    raise UserError(
        f"{'; '.join(differences.values())} since the checkpoint of step {checkpoint.step} was written: "
        f"{_suggest_restoring(differences, before)}, or {FRESH}"
    )


def _suggest_restoring(differences: Mapping[str, str], before: RunRecord) -> str:
    if "model" in differences and before.spec["model"]["source"].startswith("hf://"):
        return f"set model.revision to {before.fingerprints.model} with --resume"
    what = [noun for noun, names in _RESTORABLE.items() if names & differences.keys()]
    return f"restore the {' and the '.join(what)}"


_RESTORABLE = {"data": {"train", "validation", "test"}, "model": {"tokenizer", "model"}}


def _check_same_settings(checkpoint: Checkpoint, record: RunRecord, mode: ResumeMode) -> None:
    changes = diff_specs(_run(checkpoint).spec, record.spec, Effect.RESULT)
    if changes and not mode.resume:
        raise UserError(
            f"{join_changes(changes)}: changed since the checkpoint of step {checkpoint.step} was written: continue "
            f"from it with the new values with --resume, or {FRESH}"
        )


# Restoring -------------------------------------------------------------------------------------------------------


def start_run(
    checkpoints: CheckpointManager,
    found: Checkpoint | None,
    record: RunRecord,
    context: TrainingContext,
    log: Callable[[str], None],
) -> TrainState:
    """Restore the checkpoint, if there is one, and set what the checkpoints of this attempt record.

    Raises:
        UserError: the tokenizer or the frozen weights are not those of the checkpoint.
    """
    tokenizer = fingerprint_processors(context.processors)
    record = replace(record, fingerprints=replace(record.fingerprints, tokenizer=tokenizer))
    state = TrainState(LossScale.for_device(context.device_config))
    if found is None:
        checkpoints.start_run(record, _frozen(context, {}))
        return state
    _check_same_content(found, record)
    record = replace(record, segments=_extend_segments(found, record))
    log(_describe_resume(found, record))
    checkpoint = checkpoints.store.load(found.step)
    check_frozen(_run(checkpoint).frozen, context.model.parameters)
    widen_weights(context.model.base, checkpoint.weights)
    set_model_state_dict(context.model.base, checkpoint.weights, _run(checkpoint).frozen)
    _restore_optimizers(context, checkpoint.optimizer, log)
    set_rng_state(dict(checkpoint.rng_state))
    state.loss_scale.restore(*checkpoint.loss_scale)
    checkpoints.start_run(record, _frozen(context, checkpoint.weights))
    return replace(
        state,
        step=checkpoint.step,
        history=_restore_history(checkpoint, context, log),
        elapsed=checkpoint.elapsed,
        position=checkpoint.position,
        skipped=SkippedSteps(**checkpoint.skipped_steps),
    )


def _restore_history(
    checkpoint: Checkpoint, context: TrainingContext, log: Callable[[str], None]
) -> list[HistoryEntry]:
    """The evaluations so far. Without a validation set, no later weights could be compared with theirs."""
    if checkpoint.history and context.validation is None:
        log("there is no validation set any more: the evaluations so far do not count, and the last weights are saved")
        return []
    return list(checkpoint.history)


def _frozen(context: TrainingContext, stored: Mapping[str, Tensor]) -> FrozenWeights:
    """The parameters that checkpoints need not store: neither trained now, nor stored by an earlier segment."""
    trained = {name for module in context.model.modules for name in module.plan.parameters}
    return FrozenWeights(
        {name: it for name, it in context.model.parameters.items() if name not in trained and name not in stored}
    )


def _extend_segments(checkpoint: Checkpoint, record: RunRecord) -> tuple[Segment, ...]:
    """The segments so far, and a new one if settings or versions have changed."""
    earlier, now = _run(checkpoint).segments, record.segments[-1]
    if now.versions == earlier[-1].versions and not diff_specs(earlier[-1].spec, now.spec, Effect.RESULT):
        return earlier
    return (*earlier, replace(now, step=checkpoint.step))


def _describe_resume(checkpoint: Checkpoint, record: RunRecord) -> str:
    before = _run(checkpoint)
    parts = [f"resuming from step {checkpoint.step} of attempt {before.attempt}"]
    if changes := diff_specs(before.spec, record.spec, Effect.RESULT):
        parts.append(f"these fields have changed since, and their new values apply: {join_changes(changes)}")
    old, new = before.segments[-1].versions, record.segments[-1].versions
    if versions := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        differences = [f"{name} {old.get(name)} -> {new.get(name)}" for name in versions]
        parts.append(f"versions have changed since, so results may differ: {', '.join(differences)}")
    return "; ".join(parts)


def _restore_optimizers(context: TrainingContext, tensors: Mapping[str, Tensor], log: Callable[[str], None]) -> None:
    """Restore the optimizer state, without that of modules whose optimizer cannot continue from it."""
    keys: dict[str, set[str]] = {}
    for path in tensors:
        name, _, key = path.rpartition("/")
        keys.setdefault(name, set()).add(key)
    plans = [module.plan for module in context.model.modules]
    layouts, dropped = state_layouts(plans, context.model.parameters), set()
    for plan in plans:
        names = [name for name in plan.parameters if name in keys]
        changed = [
            name
            for name in names
            if not layouts[plan.name].is_compatible(context.model.parameters[name].ndim, keys[name])
        ]
        if changed:
            log(f"module {plan.name!r} starts without the optimizer state of the checkpoint: its optimizer has another")
            dropped.update(changed)
    kept = {path: tensor for path, tensor in tensors.items() if path.rpartition("/")[0] not in dropped}
    set_optimizer_state_dict(context.optimizers, context.model.base, kept)
