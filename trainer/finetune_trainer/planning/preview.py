"""Previews of a run before it starts, for `finetune plan` and `finetune plot`.

If model and data are available, the preview is the plan of the run. On a laptop whose claims are in the cluster, some
of it is unknown: each gap is reported, and the rest is computed by the functions that plan a run.

The heavy libraries are imported by the functions that read model or data. Schedules need neither, so `finetune plot`
takes a second or two instead of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune_api.defaults import DefaultedJob, UnknownDirectionError, with_defaults
from finetune_api.job import UNSUPPORTED_TASKS, FineTuneJob
from finetune_api.modules import Module
from finetune_api.sources import locate
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.errors import OUT_OF_REACH, RunError, UserError
from finetune_trainer.plan import RunPlan, SchedulePlan, Window
from finetune_trainer.planning.parameters import ParameterInfo, assign_parameters, matching_modules
from finetune_trainer.planning.presets import ProposedModules, propose_modules
from finetune_trainer.planning.run_plan import (
    RunLength,
    plan_modules,
    run_length,
    steps_per_epoch,
    trainable_window,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from finetune_trainer.planning.weight_check import WeightReport

TASKS_WITH_HEAD = ("SequenceClassification", "ImageClassification")
"""Tasks that make a head for the classes of the data."""

TRAIN, VALIDATION, TEST = "data.train.source", "data.validation.source", "data.test.source"


@dataclass(frozen=True)
class ModulePreview:
    """One module; unknown values are None.

    Args:
        module: as in the effective job.
        parameters: names of the parameters that it owns.
        numel: number of elements in them.
        window: when it is trainable; None for a frozen module, too.
    """

    module: Module
    parameters: tuple[str, ...] | None = None
    numel: int | None = None
    window: Window | None = None

    @property
    def trainable(self) -> int | None:
        """Number of elements that are ever trained."""
        return 0 if self.module.frozen else self.numel


@dataclass(frozen=True)
class MatchedParameter:
    """A parameter of the model, and the names of the modules that match it: exactly one, unless the job is invalid."""

    info: ParameterInfo
    modules: tuple[str, ...]


@dataclass(frozen=True)
class ModelParameters:
    """The parameters of a model, in its own order.

    Args:
        model_class: name of the model's class.
        parameters: each with the modules that match it.
    """

    model_class: str
    parameters: tuple[MatchedParameter, ...]

    @property
    def infos(self) -> list[ParameterInfo]:
        return [parameter.info for parameter in self.parameters]


@dataclass(frozen=True)
class RunPreview:
    """A run before it starts, perhaps without its model or its data.

    Args:
        original: the job as in its manifest.
        job: the effective job.
        modules: its modules.
        model: the model's parameters and their owners; None if the model is not available.
        plan: the whole plan; None unless model and data are available.
        length: None if the data is not available.
        unknown: unknown parts of the plan, each with the reason.
        proposal: modules for a job without any.
        weights: how the weights in the files fit the model; None if the files are not available.
        error: why a run would reject the job.
        notes: what happens to the data; empty unless the whole plan is known.
    """

    original: FineTuneJob
    job: DefaultedJob
    modules: tuple[ModulePreview, ...]
    model: ModelParameters | None = None
    plan: RunPlan | None = None
    length: RunLength | None = None
    unknown: tuple[str, ...] = ()
    proposal: ProposedModules | None = None
    error: UserError | None = None
    weights: WeightReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def unmatched(self) -> list[str]:
        """Names of the parameters that no module matches."""
        parameters = self.model.parameters if self.model else ()
        return [parameter.info.name for parameter in parameters if not parameter.modules]


def preview_modules(plan: RunPlan) -> list[ModulePreview]:
    """The modules of a complete plan."""
    return [ModulePreview(it.spec, it.parameters, it.numel, it.window) for it in plan.modules]


def preview_run(job: FineTuneJob, claim_paths: ClaimPaths) -> RunPreview:
    """The preview of a run, as far as its inputs are available on this machine.

    An error that would end the run is part of the result, next to the information that helps to correct it.

    Raises:
        UserError: the task has no model of this type.
    """
    inputs = _Inputs(job, claim_paths, _data_gap(job, claim_paths))
    try:
        return _preview(inputs)
    except OUT_OF_REACH as error:
        return _preview(replace(inputs, data_gap=str(error)))


def _preview(inputs: _Inputs) -> RunPreview:
    """The preview of a run.

    Raises:
        HubUnreachable, NotInHubCache: the data is in a repository that is out of reach.
    """
    job, claim_paths = inputs.job, inputs.claim_paths
    try:
        config, model_gap = _load_config(job, claim_paths)
    except UserError as error:
        return _preview_without_model(inputs, None, error)
    if config is None:
        return _preview_without_model(inputs, model_gap, None)
    task, task_error = _find_task(job, config)
    if inputs.data_gap is None and task_error is None:
        return _full_preview(inputs, config, task)
    return _preview_from_config(inputs, config, task, task_error)


@dataclass(frozen=True)
class _Inputs:
    """The job, the claims on this machine, and why some of the data is not available; None if all of it is."""

    job: FineTuneJob
    claim_paths: ClaimPaths
    data_gap: str | None


def plan_schedules(job: DefaultedJob, per_epoch: int) -> SchedulePlan:
    """The schedules of a run with `per_epoch` optimizer steps in an epoch.

    Raises:
        UserError: a module never trains, its schedule does not fit its window, or all modules are frozen at a step.
    """
    length = run_length(job.spec.training, per_epoch)
    modules = plan_modules(job.spec.modules, length)
    return SchedulePlan(job, modules, length.planned_steps, per_epoch)


def count_samples(job: FineTuneJob, claim_paths: ClaimPaths) -> int:
    """Number of training samples, from the metadata of the data files where that is enough.

    Raises:
        UserError: the data is not available, or cannot be read.
    """
    spec = job.spec.data
    if gap := _unavailable(spec.train.source, TRAIN, claim_paths):
        raise UserError(f"the length of the run depends on its data. {gap}. Set it with --samples N")
    from finetune_trainer import data

    files, bad_rows = data.resolve_files(spec.train, "data.train", claim_paths), data.BadRowPolicy.from_spec(spec)
    if columns := data.fold_columns(spec.fold, data.read_columns(files) if spec.fold else (), TRAIN):
        table = data.read_table(files, bad_rows, columns)
        return len(data.train_validation_split(table.to_dataset({}), spec, table)[0])
    return data.split_sizes(spec, data.count_rows(files, bad_rows))[0]


def _full_preview(inputs: _Inputs, config: PretrainedConfig, task: str | None) -> RunPreview:
    """The preview with the plan of the run: model and data are available."""
    from finetune_trainer.planning.model_loader import build_meta_model
    from finetune_trainer.planning.prepare import prepare

    try:
        prepared = prepare(inputs.job, inputs.claim_paths)
    except OUT_OF_REACH:
        raise
    except UserError as error:
        return _preview_from_config(inputs, config, task, error)
    plan = prepared.plan
    model = _match_parameters(plan.job, build_meta_model(prepared.task.auto_class, prepared.config))
    length = RunLength(plan.planned_steps, plan.steps_per_epoch)
    proposal = _propose(inputs.job, prepared.config, model)
    return RunPreview(
        inputs.job,
        plan.job,
        tuple(preview_modules(plan)),
        model,
        plan,
        length,
        proposal=proposal,
        weights=prepared.weights,
        notes=(*prepared.notes, *(prepared.indexes.notes if prepared.indexes else ())),
    )


def _preview_from_config(
    inputs: _Inputs, config: PretrainedConfig, task: str | None, error: UserError | None
) -> RunPreview:
    """The preview from the model's config, without the data or for a job that a run would reject."""
    job = _with_known_defaults(inputs.job, None if task in UNSUPPORTED_TASKS else task)
    model = _match_parameters(job, _build_model(config, task))
    weights, weights_error = (None, None) if error else _check_weights(inputs, config, task)
    error = error or weights_error or _assignment_error(job, model)
    length, error = (None, error) if inputs.data_gap or error else _run_length(job, inputs.claim_paths)
    modules = tuple(_preview_module(module, model, length) for module in job.spec.modules)
    unknown, proposal = _gaps(None, inputs.data_gap), _propose(inputs.job, config, model)
    return RunPreview(inputs.job, job, modules, model, None, length, unknown, proposal, error, weights)


def _with_known_defaults(job: FineTuneJob, task: str | None) -> DefaultedJob:
    """The job with its defaults; those of the evaluation stay unset where its metric is not known."""
    try:
        return with_defaults(job, task)
    except UnknownDirectionError:
        return with_defaults(job, None)


def _preview_without_model(inputs: _Inputs, model_gap: str | None, error: UserError | None) -> RunPreview:
    job = _with_known_defaults(inputs.job, inputs.job.spec.task)
    length, error = (None, error) if inputs.data_gap or error else _run_length(job, inputs.claim_paths)
    modules = tuple(_preview_module(module, None, length) for module in job.spec.modules)
    unknown = _gaps(model_gap, inputs.data_gap)
    return RunPreview(inputs.job, job, modules, length=length, unknown=unknown, error=error)


def _gaps(model_gap: str | None, data_gap: str | None) -> tuple[str, ...]:
    gaps = (("which parameters each module owns", model_gap), ("the number of steps", data_gap))
    return tuple(f"{what} ({reason})" for what, reason in gaps if reason)


def _find_task(job: FineTuneJob, config: PretrainedConfig) -> tuple[str | None, UserError | None]:
    """The task, and why a run would reject it."""
    from finetune_trainer.tasks import get_task, infer_task

    if job.spec.task is not None:
        return job.spec.task, None
    try:
        task = infer_task(config)
    except UserError as unclear:
        return None, unclear
    try:
        get_task(task)
    except UserError as unsupported:
        return task, unsupported
    return task, None


def _preview_module(module: Module, model: ModelParameters | None, length: RunLength | None) -> ModulePreview:
    owned = [it.info for it in model.parameters if module.name in it.modules] if model else None
    window = trainable_window(module.freeze, length) if length and not module.frozen else None
    if owned is None:
        return ModulePreview(module, window=window)
    return ModulePreview(module, tuple(it.name for it in owned), sum(it.numel for it in owned), window)


def _run_length(job: DefaultedJob, claim_paths: ClaimPaths) -> tuple[RunLength | None, UserError | None]:
    """The length of the run, or why a run would reject the data or the schedules."""
    try:
        per_epoch = steps_per_epoch(job.spec.training, count_samples(job, claim_paths))
        return RunLength(plan_schedules(job, per_epoch).planned_steps, per_epoch), None
    except OUT_OF_REACH:
        raise
    except UserError as error:
        return None, error


def _build_model(config: PretrainedConfig, task: str | None) -> PreTrainedModel:
    from transformers import AutoModel

    from finetune_trainer.planning.model_loader import build_meta_model
    from finetune_trainer.tasks import get_auto_class

    return build_meta_model(get_auto_class(task) if task else AutoModel, config)


def _match_parameters(job: DefaultedJob, model: PreTrainedModel) -> ModelParameters:
    """The model's parameters, each with the modules that match it."""
    from finetune_trainer.planning.model_loader import list_parameters

    infos = list_parameters(model)
    modules = matching_modules(job.spec.modules, infos)
    return ModelParameters(
        type(model).__name__, tuple(MatchedParameter(info, tuple(modules[info.name])) for info in infos)
    )


def _check_weights(
    inputs: _Inputs, config: PretrainedConfig, task: str | None
) -> tuple[WeightReport | None, UserError | None]:
    """How the weights fit the model, or why a run would reject them.

    Without the data it is not known whether the task makes the head anew, so it may be missing.
    """
    from finetune_trainer.planning.model_loader import check_weights, resolve_model

    pretrained = resolve_model(inputs.job.spec.model, inputs.claim_paths)
    if task is None:
        return None, None
    try:
        return check_weights(pretrained, config, _build_model(config, task), task in TASKS_WITH_HEAD), None
    except OUT_OF_REACH:
        return None, None
    except UserError as error:
        return None, error


def _assignment_error(job: DefaultedJob, model: ModelParameters) -> UserError | None:
    try:
        assign_parameters(job.spec.modules, model.infos, job.spec.unmatched)
    except UserError as error:
        return error
    return None


def _propose(job: FineTuneJob, config: PretrainedConfig, model: ModelParameters) -> ProposedModules | None:
    if job.spec.modules is not None:
        return None
    return propose_modules(config.model_type, model.model_class, model.infos)


# Availability of the inputs on this machine ----------------------------------------------------------------------


def _load_config(job: FineTuneJob, claim_paths: ClaimPaths) -> tuple[PretrainedConfig | None, str | None]:
    """The model's config, or why it is not available."""
    source = job.spec.model.source
    if gap := _unavailable(source, "model.source", claim_paths):
        return None, gap
    from finetune_trainer.planning import model_loader

    try:
        return model_loader.load_config(model_loader.resolve_model(job.spec.model, claim_paths)), None
    except RunError as error:
        if locate(source).scheme == "hf":  # a machine without access to the Hugging Face Hub is not an error
            return None, str(error)
        raise


def _data_gap(job: FineTuneJob, claim_paths: ClaimPaths) -> str | None:
    """Why some of the data is not available; None if all of it is."""
    spec = job.spec.data
    parts: Sequence[tuple[str, str | None]] = (
        (TRAIN, spec.train.source),
        (VALIDATION, spec.validation.source if spec.validation else None),
        (TEST, spec.test.source if spec.test else None),
    )
    gaps = (_unavailable(source, field_path, claim_paths) for field_path, source in parts if source)
    return next(filter(None, gaps), None)


def _unavailable(source: str, field_path: str, claim_paths: ClaimPaths) -> str | None:
    """Why a claim is not available on this machine; None for a claim that is, and for the Hugging Face Hub."""
    location = locate(source)
    if location.scheme != "pvc" or claim_paths.folder(location.name).is_dir():
        return None
    try:
        claim_paths.resolve(source, field_path)
    except UserError as error:
        return str(error)
    return None
