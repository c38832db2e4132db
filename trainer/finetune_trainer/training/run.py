"""A run from start to end: prepare, load, restore, train, export, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from finetune_api.job import FineTuneJob
from finetune_api.status import Report
from finetune_trainer.callbacks import Callback, CallbackList, TestRecord
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.errors import Interrupted, RunError
from finetune_trainer.formatting import join_some
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.input_check import check_inputs
from finetune_trainer.planning.prepare import DatasetIndexes, PreparedRun, index_datasets, prepare
from finetune_trainer.reporting.metrics_jsonl import METRICS_FILE, MetricsWriter, find_test_record, truncate
from finetune_trainer.reporting.prometheus import serve_metrics
from finetune_trainer.reporting.tracker import StatusTracker
from finetune_trainer.tasks import Processors
from finetune_trainer.tasks.indexing import OnProgress
from finetune_trainer.training import export, resume
from finetune_trainer.training.assembly import assemble
from finetune_trainer.training.checkpoint import CheckpointManager
from finetune_trainer.training.device import (
    explain_nondeterminism,
    explain_out_of_memory,
    select_device,
    set_determinism,
)
from finetune_trainer.training.disk_space import check_disk_space
from finetune_trainer.training.divergence import describe_trained_steps
from finetune_trainer.training.dtypes import cast_weights, round_weights
from finetune_trainer.training.evaluation import HistoryEntry, MetricTracker
from finetune_trainer.training.failures import detecting_repeated_failures
from finetune_trainer.training.independence import IndependenceCheck, ensure_independent_predictions
from finetune_trainer.training.optimizers import build_optimizers
from finetune_trainer.training.resume import ResumeMode
from finetune_trainer.training.rng import set_seed
from finetune_trainer.training.selection import SelectedWeights, select_weights
from finetune_trainer.training.signals import StopFlag, stop_on_signals
from finetune_trainer.training.state import TrainingContext, TrainState
from finetune_trainer.training.trainer import Trainer
from finetune_trainer.training.trial import unchanged
from finetune_trainer.training.watchdog import Heartbeat, watchdog

TESTED_FILE = "tested.json"
"""File in the checkpoint folder: the weights that the last test measured."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not part of the job.

    Args:
        claims: folders of the claims.
        attempt: number of the attempt, from 1; a newer attempt prevents older ones from writing.
        metrics_port: port of the Prometheus metrics; None disables them.
        termination_log: file for the report at the end.
        fresh: delete the checkpoints of the same run and start from the beginning.
        resume: continue from the latest checkpoint although settings have changed since it was written.
        stall_timeout: seconds without progress after which the run is terminated; None for the job's
            stallTimeoutSeconds.
    """

    claims: ClaimPaths = field(default_factory=ClaimPaths)
    attempt: int = 1
    metrics_port: int | None = None
    termination_log: Path | None = None
    fresh: bool = False
    resume: bool = False
    stall_timeout: float | None = None


def run(job: FineTuneJob, options: RunOptions, callback: Callback) -> Report:
    """Run a job.

    Args:
        job: the job as written by the user.
        options: options that are not part of the job.
        callback: receives all events, including the end with success or failure, and is closed.

    Raises:
        RunError: the run failed or was interrupted; see its `exit_code` and `reason`.
    """
    tracker = StatusTracker()
    callbacks = CallbackList((tracker, callback))
    try:
        with stop_on_signals() as stop, serve_metrics(tracker, options.metrics_port):
            stop.exit_hooks.append(
                lambda message: _write_termination_log(tracker.report(Interrupted.reason, message), options)
            )
            destination = options.claims.create_destination(job.destination)
            checkpoints = CheckpointManager(job, destination, options.attempt)
            stop.exit_hooks.append(lambda _: checkpoints.lease.release())
            try:
                report = _execute(_RunContext(job, options, callbacks, tracker, stop, destination, checkpoints))
            finally:
                _finish_saving(checkpoints, callbacks)
    except BaseException as error:
        _report_end(tracker.report(*_describe_failure(error)), options, callbacks)
        raise
    _report_end(report, options, callbacks)
    return report


def _finish_saving(checkpoints: CheckpointManager, callback: Callback) -> None:
    """Complete the checkpoint that is being written. Its error must not hide how the run ended."""
    try:
        if record := checkpoints.wait():
            callback.on_save(record)
    except Exception as error:  # noqa: BLE001
        callback.on_message(str(error))
    finally:
        checkpoints.close()


def _report_end(report: Report, options: RunOptions, callback: Callback) -> None:
    """Report the end of the run. An error while writing must not hide how the run ended."""
    with closing(callback):
        callback.on_run_end(report)
        with suppress(OSError):
            _write_termination_log(report, options)


def _write_termination_log(report: Report, options: RunOptions) -> None:
    if options.termination_log is not None:
        options.termination_log.write_text(report.termination_message())


@dataclass(frozen=True)
class _RunContext:
    """What every stage of a run needs."""

    job: FineTuneJob
    options: RunOptions
    callback: Callback
    tracker: StatusTracker
    stop: StopFlag
    destination: Path
    checkpoints: CheckpointManager

    @property
    def metrics_file(self) -> Path:
        return self.checkpoints.folder / METRICS_FILE

    def on_progress(self, activity: str, done: int, total: int) -> None:
        """Report the progress of what is done before the first step.

        Raises:
            Interrupted: a stop was requested.
        """
        self.stop.raise_if_requested()
        self.callback.on_progress(activity, done, total)


def _execute(run: _RunContext) -> Report:
    job, checkpoints, log = run.job, run.checkpoints, run.callback.on_message
    checkpoints.acquire(log, run.stop.raise_if_requested)
    existing = export.find_existing_output(job, run.destination, checkpoints.folder)
    if existing and existing.is_same_object:
        return _report_existing_output(run, existing)
    set_seed(job.spec.training.seed)
    prepared = prepare(job, run.options.claims, run.on_progress)
    record = resume.build_record(prepared, run.options.attempt)
    if existing:
        existing.check_same_content(job, record.fingerprints)
        return _report_existing_output(run, existing)
    mode = ResumeMode(run.options.resume, run.options.fresh)
    checkpoint = resume.find_checkpoint(checkpoints, record, prepared.plan.planned_steps, mode, log)
    try:
        context = _build_context(prepared, run.callback, run.on_progress)
        state = resume.start_run(checkpoints, checkpoint, record, context, log)
        check_disk_space(checkpoints, context, state, log)
        with detecting_repeated_failures(checkpoints.folder, lambda: state.step):
            _train(run, context, state)
            return _test_and_export(run, context, state)
    except torch.OutOfMemoryError as error:
        raise explain_out_of_memory(prepared.plan.job.spec, error) from error
    except RuntimeError as error:
        if explanation := explain_nondeterminism(error):
            raise explanation from error
        raise


def _report_existing_output(run: _RunContext, existing: export.ExistingOutput) -> Report:
    run.checkpoints.remove()
    message = f"{run.job.destination} already has the output of this job; nothing was trained"
    return run.tracker.report("OutputAlreadyExists", message, existing.status)


def _build_context(prepared: PreparedRun, callback: Callback, on_progress: OnProgress) -> TrainingContext:
    """Load the weights, and build everything that the trainer needs."""
    spec, task = prepared.plan.job.spec, prepared.task
    device_config = select_device(spec)
    set_determinism(spec.training.deterministic)
    processors = model_loader.load_processors(prepared.pretrained, task, prepared.config, spec.data.max_length)
    indexes = index_datasets(prepared, processors, on_progress)
    check_inputs(prepared, processors, indexes)
    callback.on_message(f"loading {prepared.pretrained.source}")
    model, model_messages = assemble(prepared, processors, device_config)
    for message in (*_data_messages(prepared, processors, indexes), *model_messages):
        callback.on_message(message)
    context = TrainingContext(
        plan=prepared.plan,
        task=task,
        model=model,
        processors=processors,
        train=prepared.train,
        validation=prepared.validation,
        optimizers=build_optimizers([module.plan for module in model.modules], model.parameters),
        device_config=device_config,
        test=prepared.test,
        indexes=indexes,
    )
    return _with_independent_predictions(context, callback)


def _with_independent_predictions(context: TrainingContext, callback: Callback) -> TrainingContext:
    task, processors = context.task, context.processors
    check = IndependenceCheck(
        task, lambda samples: task.make_batch(samples, processors), context.train, context.device_config
    )
    micro_batch_size = context.plan.job.spec.training.micro_batch_size
    with unchanged(context):
        model, messages = ensure_independent_predictions(context.model, task, processors, check, micro_batch_size)
    for message in messages:
        callback.on_message(message)
    return replace(context, model=model)


def _data_messages(prepared: PreparedRun, processors: Processors, indexes: DatasetIndexes) -> Iterator[str]:
    """Which data is not read, skipped, dropped or truncated."""
    plan = prepared.plan
    yield from (*prepared.notes, *indexes.notes, *prepared.task.encoding_notes(processors))
    if dropped := plan.train_samples - plan.steps_per_epoch * plan.job.spec.training.batch_size:
        yield f"dropping the last incomplete batch: {dropped:,} of {plan.train_samples:,} samples per epoch"
    if processors.max_length:
        yield from _truncation_messages(indexes, processors.max_length)


def _truncation_messages(indexes: DatasetIndexes, max_length: int) -> Iterator[str]:
    names = {"": indexes.train, " of data.validation": indexes.validation, " of data.test": indexes.test}
    for name, index in names.items():
        if index is not None and (truncated := index.count_truncated(max_length)):
            texts = f"{truncated:,} of {len(index):,} texts{name}"
            yield f"truncating {texts} to {max_length:,} tokens (data.maxLength): their ends are not used"


def _train(run: _RunContext, context: TrainingContext, state: TrainState) -> None:
    truncate(run.metrics_file, state.step, state.last_evaluated_step)
    run.tracker.restore(run.metrics_file)
    with closing(MetricsWriter(run.metrics_file)) as metrics:
        heartbeat = Heartbeat()
        run.checkpoints.store.on_progress = heartbeat.beat
        callback = CallbackList((run.callback, metrics, heartbeat))
        callback.on_train_begin(context.plan, state.step)
        trainer = Trainer(context, state, run.checkpoints, callback, run.stop, before_save=metrics.flush)
        with _start_watchdog(run, heartbeat):
            trainer.train()
    if metrics.problem:
        callback.on_message(f"cannot write {metrics.problem}; rows are missing")
    if state.step < context.plan.planned_steps:
        tracker = MetricTracker(context.plan.job.spec.evaluation)
        reason = "was never finite" if tracker.is_never_finite(state.history) else "no longer improves"
        callback.on_message(f"stopped early after step {state.step}: {tracker.metric} {reason}")


def _start_watchdog(run: _RunContext, heartbeat: Heartbeat) -> AbstractContextManager[None]:
    timeout = run.options.stall_timeout or run.job.spec.stall_timeout_seconds
    return watchdog(heartbeat, timeout, lambda: _report_stall(run, timeout))


def _report_stall(run: _RunContext, timeout: float) -> str:
    """Write the termination log of a run that hangs. Returns its message."""
    if run.checkpoints.latest:  # completed in the background; the loop may have had no time to report it
        run.tracker.on_save(run.checkpoints.latest)
    report = run.tracker.report(
        "Stalled",
        f"no progress for {timeout:g} s after step {run.tracker.steps_done}: no step, evaluation batch, checkpoint or "
        "part of the output; the log has the stack trace of each thread: check the storage of data and output, and the "
        "GPU; if one of them can take this long, raise stallTimeoutSeconds",
    )
    _write_termination_log(report, run.options)
    return report.message


def _test_and_export(run: _RunContext, context: TrainingContext, state: TrainState) -> Report:
    """Load the best weights, unless the last ones are to be kept, then test and export them."""
    heartbeat = Heartbeat()
    run.checkpoints.store.on_progress = heartbeat.beat
    with _start_watchdog(run, heartbeat):
        weights = select_weights(run.checkpoints, context, state)
        heartbeat.beat()
        for note in weights.notes:
            run.callback.on_message(note)
        run.callback.on_message(f"saving the weights of {weights.description}")
        final = _measure_final(run, context, state, weights, heartbeat)
        test = _test(run, context, state, weights, heartbeat) if context.test is not None else None
        record = run.checkpoints.record
        metadata = export.build_run_metadata(run.job, record, context.plan, state, weights, test=test, final=final)
        _cast_weights(run, context)
        output = export.export_model(context, run.checkpoints, run.destination, metadata, heartbeat)
        run.checkpoints.remove()
    trained = describe_trained_steps(state.step, state.skipped.total)
    comparison = _compare_with_before(context, state)
    message = f"{trained}; {run.job.destination} has the weights of {weights.description}{comparison}"
    return run.tracker.report("Succeeded", message, output)


def _compare_with_before(context: TrainingContext, state: TrainState) -> str:
    """A note if no evaluation was better than the one before the first step."""
    metric_tracker = MetricTracker(context.plan.job.spec.evaluation)
    if metric_tracker.is_better_than_before(state.history):
        return ""
    before = state.history[0].metrics[metric_tracker.metric]
    return f"; the best {metric_tracker.metric} is no better than before training ({before:.4g})"


def _measure_final(
    run: _RunContext, context: TrainingContext, state: TrainState, weights: SelectedWeights, heartbeat: Heartbeat
) -> HistoryEntry | None:
    """Round the weights to the dtypes of the output. Returns their metrics on the validation set, if there is one."""
    is_rounded = round_weights(context.model.base, context.model.output_dtypes)
    entry = weights.evaluation
    if entry is None or not is_rounded:
        return entry
    callback = CallbackList((run.callback, heartbeat))
    metrics = Trainer(context, state, run.checkpoints, callback, run.stop).evaluate()
    metric = context.plan.job.spec.evaluation.metric
    before, after = entry.metrics[metric], metrics[metric]
    run.callback.on_message(f"{metric} of the weights as they are saved: {after:.4g} ({before:.4g} in FP32)")
    return HistoryEntry(entry.step, metrics)


def _cast_weights(run: _RunContext, context: TrainingContext) -> None:
    if kept := cast_weights(context.model.base, context.model.output_dtypes):
        run.callback.on_message(f"saving in FP32, because FP16 cannot represent the values: {join_some(kept)}")


def _test(
    run: _RunContext, context: TrainingContext, state: TrainState, weights: SelectedWeights, heartbeat: Heartbeat
) -> TestRecord:
    """Evaluate the test set, unless an earlier attempt did that with the same weights before it was interrupted."""
    file, tested = run.checkpoints.folder / TESTED_FILE, _describe_tested(context, weights)
    if _read_text(file) == tested and (record := find_test_record(run.metrics_file, state.step)):
        return record
    with closing(MetricsWriter(run.metrics_file)) as metrics:
        callback = CallbackList((run.callback, metrics, heartbeat))
        record = Trainer(context, state, run.checkpoints, callback, run.stop).test()
        metrics.flush()
    file.write_text(tested)
    return record


def _describe_tested(context: TrainingContext, weights: SelectedWeights) -> str:
    """Which weights are tested: checkpoint.keepBest and output.dtype may change between attempts."""
    dtypes = {name: str(dtype) for name, dtype in context.model.output_dtypes.by_name.items()}
    return json.dumps({"step": weights.step, "dtypes": dtypes}, sort_keys=True)


def _read_text(file: Path) -> str | None:
    with suppress(OSError, ValueError):
        return file.read_text()
    return None


def _describe_failure(error: BaseException) -> tuple[str, str]:
    """Reason and message of the report for an error."""
    if isinstance(error, RunError):
        return error.reason, str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted", "interrupted immediately, without a checkpoint"
    return "Crashed", f"{type(error).__name__}: {error}"
