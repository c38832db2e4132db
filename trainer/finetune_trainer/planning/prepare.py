"""Checks a job against its model and its data, before any weights are loaded; what `finetune plan` and `run` share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from finetune_api.data import Columns, DataSource, Validation
from finetune_api.defaults import EffectiveJob, UnknownDirectionError, with_defaults
from finetune_api.job import FineTuneJob
from finetune_api.suggestions import closest_match
from finetune_trainer import data
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRowPolicy, Dataset
from finetune_trainer.errors import UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.parameters import ParameterInfo
from finetune_trainer.planning.run_plan import plan_run
from finetune_trainer.planning.weight_check import WeightReport
from finetune_trainer.tasks import Processors, Task, get_task, infer_task
from finetune_trainer.tasks.index import ExampleIndex
from finetune_trainer.tasks.indexing import IndexBuilder, OnProgress, ignore_progress

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class DatasetIndexes:
    """The index of each dataset of a run; None for a dataset that it does not have."""

    train: ExampleIndex
    validation: ExampleIndex | None
    test: ExampleIndex | None

    @property
    def notes(self) -> list[str]:
        """What was found in the data besides bad rows, for the user."""
        return [note for index in (self.train, self.validation, self.test) if index for note in index.notes]


@dataclass(frozen=True)
class PreparedRun:
    """A job with its data and its model's config, which fit each other; no weights yet.

    Args:
        task: what the model learns.
        pretrained: where its weights are loaded from.
        config: the model's config, changed where the data requires it.
        train, validation, test: the datasets.
        plan: steps, modules and schedules.
        parameters: the model's parameters.
        weights: how the weights in the files fit the model; None if that is not known before they are loaded.
        notes: what happened to the data, for the user.
        indexes: the indexes of the datasets, if building the plan required them.
    """

    task: Task
    pretrained: model_loader.PretrainedSource
    config: PretrainedConfig
    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    plan: RunPlan
    parameters: tuple[ParameterInfo, ...]
    weights: WeightReport | None
    notes: tuple[str, ...] = ()
    indexes: DatasetIndexes | None = None


def prepare(job: FineTuneJob, claim_paths: ClaimPaths, on_progress: OnProgress = ignore_progress) -> PreparedRun:
    """Read the model's config and the data, and plan the run.

    Raises:
        UserError: they do not fit the job, or each other.
    """
    pretrained = model_loader.resolve_model(job.spec.model, claim_paths)
    config = model_loader.load_config(pretrained)
    task_name = job.spec.task or infer_task(config)
    task_class = get_task(task_name)
    training = job.spec.training
    task_class.check_batch_size(training.batch_size, training.micro_batch_size or training.batch_size)
    spec = job.spec
    bad_rows = BadRowPolicy.from_spec(spec.data)
    all_rows, train, validation, test, file_notes = _open_data(job, task_class, claim_paths, bad_rows, on_progress)
    task = task_class.build(config, all_rows, model_loader.load_declared_config(pretrained))
    effective_job = with_checked_defaults(job, task_name, task.metric_names)
    indexes = None
    if bad_rows.skip:  # before samples are counted; with onBadRow: Fail, a run checks the rows once it has processors
        processors = model_loader.load_processors(pretrained, task, config, spec.data.max_length)
        builder = IndexBuilder(task, processors, spec.data.workers, fail_fast=False, on_progress=on_progress)
        train, train_index = _drop_bad_rows(train, builder, bad_rows)
        validation, validation_index = _drop_bad_rows(validation, builder, bad_rows) if validation else (None, None)
        test, test_index = _drop_bad_rows(test, builder, bad_rows) if test else (None, None)
        indexes = DatasetIndexes(train_index, validation_index, test_index)
    model = model_loader.build_meta_model(task.auto_class, config)
    parameters = tuple(model_loader.list_parameters(model))
    weights = model_loader.check_weights(pretrained, config, model, task.new_head)
    plan = plan_run(effective_job, parameters, len(train), len(validation) if validation else 0)
    notes = (*file_notes, *task.notes, *bad_rows.notes())
    return PreparedRun(task, pretrained, config, train, validation, test, plan, parameters, weights, notes, indexes)


def index_datasets(prepared: PreparedRun, processors: Processors, on_progress: OnProgress) -> DatasetIndexes:
    """Check all rows, and measure their examples.

    Raises:
        UserError: a row is bad.
        Interrupted: raised by `on_progress`.
    """
    if prepared.indexes is not None:
        return prepared.indexes
    workers = prepared.plan.job.spec.data.workers
    builder = IndexBuilder(prepared.task, processors, workers, fail_fast=True, on_progress=on_progress)
    return DatasetIndexes(
        builder.build(prepared.train),
        builder.build(prepared.validation) if prepared.validation else None,
        builder.build(prepared.test) if prepared.test else None,
    )


def with_checked_defaults(job: FineTuneJob, task_name: str, metric_names: Sequence[str]) -> EffectiveJob:
    """The job with its defaults, after checking the metric that selects the best checkpoint.

    Raises:
        UserError: the task does not compute the metric, or its direction is not known.
    """
    if job.spec.evaluation.metric is not None:
        check_metric(job.spec.evaluation.metric, metric_names)
    try:
        return with_defaults(job, task_name)
    except UnknownDirectionError as error:
        raise UserError(str(error)) from error


def check_metric(metric: str, available: Sequence[str]) -> None:
    """Check that the task computes the metric that selects the best checkpoint.

    Raises:
        UserError: it does not.
    """
    if metric in available:
        return
    near = closest_match(metric, available)
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"evaluation.metric: unknown metric {metric!r}; available: {', '.join(available)}{hint}")


def _open_data(
    job: FineTuneJob, task_class: type[Task], claim_paths: ClaimPaths, bad_rows: BadRowPolicy, on_progress: OnProgress
) -> tuple[Dataset, Dataset, Dataset | None, Dataset | None, list[str]]:
    """All of `data.train`, then training, validation and test set, with the columns that the task needs; notes."""
    spec = job.spec.data
    data_files = data.resolve_files(spec.train, "data.train", claim_paths)
    notes = list(data_files.notes)
    progress = partial(on_progress, "reading data.train")
    available = data.read_columns(data_files, progress)
    task_class.check_columns(available, spec.columns, data_files.field_path)
    roles = task_class.required_roles, task_class.optional_roles
    names = data.resolve_columns(available, spec.columns, *roles, data_files.field_path)
    used = dict.fromkeys([*names.values(), *data.fold_columns(spec.fold, available, data_files.field_path)])
    table = data.read_table(data_files, bad_rows, list(used), progress)
    nullable = task_class.nullable_roles
    all_rows = _drop_incomplete_rows(table, names, nullable, bad_rows)
    train, validation = data.train_validation_split(all_rows, spec, table)
    notes.extend(data.describe_split(spec, len(all_rows)))

    def open_eval_set(source: DataSource | Validation | None, field_path: str) -> Dataset | None:
        if source is None or source.source is None:
            return None
        found = data.resolve_files(source, field_path, claim_paths)
        data.check_no_overlap(found, data_files)
        notes.extend(found.notes)
        progress = partial(on_progress, f"reading {field_path}")
        available = data.read_columns(found, progress)
        task_class.check_columns(available, spec.columns, found.field_path)
        required = {role: name for role, name in names.items() if role not in nullable}
        optional = [role for role in nullable if getattr(spec.columns, role) in (None, *available)]
        columns = Columns(**required, **{role: getattr(spec.columns, role) for role in optional})
        named = data.resolve_columns(available, columns, [list(required)], optional, found.field_path)
        table = data.read_table(found, bad_rows, list(dict.fromkeys(named.values())), progress)
        return data.align_labels(_drop_incomplete_rows(table, named, nullable, bad_rows), train)

    validation = validation or open_eval_set(spec.validation, "data.validation")
    return all_rows, train, validation, open_eval_set(spec.test, "data.test"), notes


def _drop_incomplete_rows(
    table: data.Table, columns: Mapping[str, str], nullable: Collection[str], bad_rows: BadRowPolicy
) -> Dataset:
    """The rows that have a value in every column that the task reads, except for nullable roles."""
    dataset = table.to_dataset(columns, verify_all_images=bad_rows.skip)
    required = [role for role in columns if role not in nullable]
    return bad_rows.drop_rows(dataset, data.merge_problems(*map(dataset.missing_values, required)))


def _drop_bad_rows(data: Dataset, builder: IndexBuilder, bad_rows: BadRowPolicy) -> tuple[Dataset, ExampleIndex]:
    """The dataset without its bad rows, and its index."""
    index = builder.build(data)
    return bad_rows.drop_rows(data, index.problems), index.drop_bad_rows()
