"""A run from beginning to end: load, plan modules, build optimizers, resume, loop, save, report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from finetune_api.data import Columns, DataSource, Validation
from finetune_api.defaults import with_defaults
from finetune_api.job import FineTuneJob
from finetune_api.status import Report
from finetune_trainer import data
from finetune_trainer.callbacks import Callback, CallbackList, TestRecord
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRowPolicy, Dataset
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.modules import plan_run
from finetune_trainer.reporting.metrics_jsonl import METRICS_FILE, MetricsWriter, find_test_record, truncate
from finetune_trainer.reporting.prometheus import serve_metrics
from finetune_trainer.reporting.tracker import StatusTracker
from finetune_trainer.tasks import Processors, Task, get_task, infer_task
from finetune_trainer.training import checkpoint as saved
from finetune_trainer.training import device, export, optimizers, rng
from finetune_trainer.training.checkpoint import Checkpoint, Checkpoints
from finetune_trainer.training.device import LossScale
from finetune_trainer.training.evaluation import Judge, check_metric
from finetune_trainer.training.gradients import Part
from finetune_trainer.training.signals import Stop, watch_signals
from finetune_trainer.training.trainer import Loop, Progress, Setup
from finetune_trainer.training.watchdog import Pulse, watching


@dataclass(frozen=True)
class RunOptions:
    """What is about this run and not about the job.

    Args:
        claims: where claims are.
        attempt: counted from 1; a newer attempt keeps older ones from writing.
        metrics_port: where Prometheus finds the metrics; None for nowhere.
        termination_log: where the report is written at the end.
        fresh: throw checkpoints of the same run away.
        stall_timeout: seconds in which the loop has to get something done; None for what the job says.
    """

    claims: ClaimPaths = field(default_factory=ClaimPaths)
    attempt: int = 1
    metrics_port: int | None = None
    termination_log: Path | None = None
    fresh: bool = False
    stall_timeout: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A job, its data and its model's config, found to fit each other; no weights yet."""

    task: Task
    pretrained: model_loader.Pretrained
    config: PretrainedConfig
    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    plan: RunPlan
    notes: tuple[str, ...] = ()


def run(job: FineTuneJob, options: RunOptions, callback: Callback) -> Report:
    """Run a job. The callback hears how it ends, well or badly, and is closed.

    Raises:
        RunError: it did not end well; `exit_code` and `reason` say how.
    """
    tracker = StatusTracker()
    everyone = CallbackList((tracker, callback))
    try:
        with watch_signals() as stop, serve_metrics(tracker, options.metrics_port):
            destination = options.claims.destination(job.destination)
            checkpoints = Checkpoints.of(job, destination, options.attempt)
            report = _run(_Session(job, options, everyone, tracker, stop, destination, checkpoints))
    except BaseException as error:
        _end(tracker.report(*_failure(error)), options, everyone)
        raise
    _end(report, options, everyone)
    return report


def _end(report: Report, options: RunOptions, callback: Callback) -> None:
    """Say the last word to everybody; what goes wrong with that must not hide how the run ended."""
    with closing(callback):
        callback.on_run_end(report)
        with suppress(OSError):
            _write(report, options)


def _write(report: Report, options: RunOptions) -> None:
    if options.termination_log is not None:
        options.termination_log.write_text(report.termination_message())


def plan(job: FineTuneJob, claim_paths: ClaimPaths) -> RunPlan:
    """What a run of this job would do: from the model's config and the data's sizes, without weights.

    Raises:
        UserError: the job does not fit the model or the data.
    """
    return prepare(job, claim_paths).plan


def prepare(job: FineTuneJob, claim_paths: ClaimPaths) -> Prepared:
    """Look at model and data, and plan the run.

    Raises:
        UserError: they do not fit the job, or each other.
    """
    pretrained = model_loader.find(job.spec.model, claim_paths)
    config = model_loader.load_config(pretrained)
    task_name = job.spec.task or infer_task(config)
    kind = get_task(task_name)
    training = job.spec.training
    kind.check_batch_size(training.batch_size, training.micro_batch_size or training.batch_size)
    job = with_defaults(job, task_name)
    spec = job.spec
    bad_rows = data.BadRowPolicy.from_spec(spec.data)
    whole, train, validation, test = _open_data(job, kind, claim_paths, bad_rows)
    task = kind.build(config, whole)
    check_metric(Judge(spec.evaluation), task.metric_names)
    if bad_rows.skip:  # before anything is counted; otherwise the first one ends the run, once the processors are there
        processors = model_loader.load_processors(pretrained, task, config, spec.data.max_length)
        train = bad_rows.drop_rows(train, task.find_problems(train, processors))
        validation = bad_rows.drop_rows(validation, task.find_problems(validation, processors)) if validation else None
        test = bad_rows.drop_rows(test, task.find_problems(test, processors)) if test else None
    parameters = model_loader.parameters_of(model_loader.skeleton(task.auto_class, config))
    decided = plan_run(job, parameters, len(train), len(validation) if validation else 0)
    return Prepared(task, pretrained, config, train, validation, test, decided, tuple(bad_rows.notes()))


def _open_data(
    job: FineTuneJob, kind: type[Task], claim_paths: ClaimPaths, bad_rows: BadRowPolicy
) -> tuple[Dataset, Dataset, Dataset | None, Dataset | None]:
    """All of `data.train`, then training, validation and test set, with the columns that the task needs."""
    spec = job.spec.data
    layout = data.resolve_files(spec.train, "data.train", claim_paths)
    table = data.read_table(layout, bad_rows)
    names = data.resolve_columns(
        table.columns, spec.columns, kind.required_roles, kind.optional_roles, table.data_files.field_path
    )
    whole = _present(table, names, bad_rows)
    train, validation = data.train_validation_split(whole, spec, table)

    def other(source: DataSource | Validation | None, field: str) -> Dataset | None:
        if source is None or source.source is None:
            return None
        found = data.resolve_files(source, field, claim_paths)
        data.check_no_overlap(found, layout)
        table = data.read_table(found, bad_rows)
        named = data.resolve_columns(table.columns, Columns(**names), [list(names)], (), table.data_files.field_path)
        return data.align_labels(_present(table, named, bad_rows), train)

    return whole, train, validation or other(spec.validation, "data.validation"), other(spec.test, "data.test")


def _present(table: data.Table, names: Mapping[str, str], bad_rows: BadRowPolicy) -> Dataset:
    """The rows in which nothing is missing that the task makes use of."""
    found = table.to_dataset(names, verify_all_images=bad_rows.skip)
    return bad_rows.drop_rows(found, data.merge_problems(*map(found.missing_values, names)))


@dataclass(frozen=True)
class _Session:
    """What every stage of a run needs."""

    job: FineTuneJob
    options: RunOptions
    callback: Callback
    tracker: StatusTracker
    stop: Stop
    destination: Path
    checkpoints: Checkpoints

    @property
    def metrics(self) -> Path:
        return self.checkpoints.folder / METRICS_FILE


def _run(session: _Session) -> Report:
    job, checkpoints = session.job, session.checkpoints
    if done := export.existing(job, session.destination, checkpoints.folder):
        checkpoints.remove()
        message = f"{job.destination} already holds the result of this job; nothing was trained"
        return session.tracker.report("OutputAlreadyExists", message, done)
    rng.seed_all(job.spec.training.seed)
    prepared = prepare(job, session.options.claims)
    try:
        setup = _set_up(prepared, session.callback)
        progress = _resume(session, setup)
        _train(session, setup, progress)
        return _finish(session, setup, progress)
    except torch.OutOfMemoryError as error:
        raise device.out_of_memory(prepared.plan.job.spec, error) from error


def _set_up(prepared: Prepared, callback: Callback) -> Setup:
    """Load the weights, and build everything that the loop needs."""
    spec, task = prepared.plan.job.spec, prepared.task
    compute = device.choose(spec)
    device.set_determinism(spec.training.deterministic)
    processors = model_loader.load_processors(prepared.pretrained, task, prepared.config, spec.data.max_length)
    if spec.data.on_bad_row == "Fail":
        for part in filter(None, (prepared.train, prepared.validation, prepared.test)):
            for problem in task.find_problems(part, processors):
                raise UserError(part.describe(problem))
    callback.on_message(f"loading {prepared.pretrained.source}")
    model, new = model_loader.load_model(prepared.pretrained, task, prepared.config)
    model_loader.make_ready(model, task, processors, spec.training.activation_checkpointing)
    for text in (*_notes(prepared, processors), *_new_weights(new)):
        callback.on_message(text)
    model.requires_grad_(False)
    model.to(compute.device)  # type: ignore[arg-type]
    named = dict(model.named_parameters())
    learners = [module for module in prepared.plan.modules if module.window.length]
    parts = tuple(Part(module, [named[name] for name in module.parameters]) for module in learners)
    built = optimizers.build(learners, named)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
    return Setup(
        prepared.plan,
        task,
        model,
        processors,
        prepared.train,
        prepared.validation,
        parts,
        built,
        compute,
        prepared.test,
    )


def _notes(prepared: Prepared, processors: Processors) -> Iterator[str]:
    """What happens to some of the data, which nobody should have to find out."""
    plan = prepared.plan
    yield from prepared.notes
    if dropped := plan.train_samples - plan.steps_per_epoch * plan.job.spec.training.batch_size:
        yield f"{dropped} of {plan.train_samples} samples do not fill a batch; each epoch leaves out others"
    if longer := prepared.task.count_truncated(prepared.train, processors):
        yield f"{longer} of {plan.train_samples} texts are longer than {processors.max_length} tokens and are truncated"


def _new_weights(by_reason: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for reason, names in by_reason.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        yield f"newly initialised, because {reason}: {', '.join(names[:4])}{more}"


def _resume(session: _Session, setup: Setup) -> Progress:
    """Take the run's folder over, and put the latest checkpoint back, if there is one."""
    session.checkpoints.claim()
    progress = Progress(LossScale.of(setup.compute))
    if session.options.fresh:
        session.checkpoints.clear()
    checkpoint = session.checkpoints.latest(session.callback.on_message)
    if checkpoint is None:
        return progress
    _check_same_data(checkpoint, setup)
    changes = saved.differences(checkpoint.spec, setup.plan.job.spec.manifest())
    changed = f"; what changed since is taken from the spec: {'; '.join(changes)}" if changes else ""
    session.callback.on_message(f"resuming after step {checkpoint.step} of attempt {checkpoint.attempt}{changed}")
    saved.load_weights(setup.model, checkpoint.weights)
    saved.load_optimizer_state(setup.optimizers, setup.model, checkpoint.optimizer)
    rng.restore(dict(checkpoint.random))
    progress.loss_scale.value, progress.loss_scale.good_steps = checkpoint.loss_scale
    return replace(
        progress,
        step=checkpoint.step,
        history=list(checkpoint.history),
        elapsed=checkpoint.elapsed,
        skipped_steps=checkpoint.skipped_steps,
    )


def _check_same_data(checkpoint: Checkpoint, setup: Setup) -> None:
    if checkpoint.train_samples != len(setup.train):
        raise UserError(
            f"data.train.source: the training set has {len(setup.train)} samples, but had {checkpoint.train_samples} "
            f"when the checkpoint of step {checkpoint.step} was written: put it back as it was, or start over (--fresh)"
        )


def _train(session: _Session, setup: Setup, progress: Progress) -> None:
    truncate(session.metrics, progress.step, progress.evaluated)
    session.tracker.restore(session.metrics)
    with closing(MetricsWriter(session.metrics)) as metrics:
        pulse = Pulse()
        callback = CallbackList((session.callback, metrics, pulse))
        callback.on_train_begin(setup.plan, progress.step)
        loop = Loop(setup, progress, session.checkpoints, callback, session.stop)
        loop.before_save = metrics.flush
        with _watching(session, pulse):
            loop.run()
    if progress.step < setup.plan.planned_steps:
        callback.on_message(f"stopped early after step {progress.step}: {loop.judge.metric} no longer gets better")


def _watching(session: _Session, pulse: Pulse) -> AbstractContextManager[None]:
    timeout = session.options.stall_timeout or session.job.spec.stall_timeout_seconds
    return watching(pulse, timeout, lambda: _report_stall(session, timeout))


def _report_stall(session: _Session, seconds: float) -> str:
    """Write the report of a run that hangs, and say what it says."""
    tracker = session.tracker
    report = tracker.report(
        "Stalled",
        f"nothing got done for {seconds:g} s after step {tracker.steps_done}: no step, evaluation batch, checkpoint or "
        "part of the result; "
        "the log shows where each thread hangs: look at the storage of data and output, and at the GPU; "
        "if one of them does take so long, raise stallTimeoutSeconds",
    )
    _write(report, session.options)
    return report.message


def _finish(session: _Session, setup: Setup, progress: Progress) -> Report:
    """Put the best, or else the last, weights in place."""
    pulse = Pulse()
    with _watching(session, pulse):
        return _conclude(session, setup, progress, pulse)


def _conclude(session: _Session, setup: Setup, progress: Progress, pulse: Pulse) -> Report:
    judge, destination = Judge(setup.plan.job.spec.evaluation), session.job.destination
    best = judge.best(progress.history) if setup.plan.job.spec.checkpoint.keep_best else None
    chosen = f"step {progress.step}, the last"
    if best is not None:
        chosen = f"step {best.step}, the best by {judge.metric} ({best.metrics[judge.metric]:.4g})"
        if best.step != progress.step:
            saved.load_weights(setup.model, session.checkpoints.weights(best.step))
    pulse.beat()
    session.callback.on_message(f"saving the weights of {chosen}")
    tested = _test(session, setup, progress, pulse) if setup.test is not None else None
    facts = export.facts(session.job, setup.plan, progress, session.options.attempt, tested)
    status = export.publish(setup, session.checkpoints, session.destination, facts, pulse)
    session.checkpoints.remove()
    return session.tracker.report(
        "Succeeded", f"trained {progress.step} steps; {destination} holds the weights of {chosen}", status
    )


def _test(session: _Session, setup: Setup, progress: Progress, pulse: Pulse) -> TestRecord:
    """Evaluate the test set, unless an attempt before this one has, and was interrupted after it."""
    if earlier := find_test_record(session.metrics, progress.step):
        return earlier
    with closing(MetricsWriter(session.metrics)) as metrics:
        callback = CallbackList((session.callback, metrics, pulse))
        record = Loop(setup, progress, session.checkpoints, callback, session.stop).test()
        metrics.flush()
    return record


def _failure(error: BaseException) -> tuple[str, str]:
    """Reason and message of an end that is not a good one."""
    if isinstance(error, RunError):
        return error.reason, str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted", "interrupted at once, without a checkpoint"
    return "Crashed", f"{type(error).__name__}: {error}"
