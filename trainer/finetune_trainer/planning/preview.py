"""What can be known of a run before it: what `finetune plan` shows and `finetune plot` draws.

With model and data at hand that is the run's own plan. On a laptop whose claims are in the cluster it is less; then
every gap is named, and everything else is found by the same functions that plan a run, so that both say the same.

The heavy libraries are imported by the functions that look at model or data: schedules need neither, and are drawn in a
second or two instead of ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.defaults import DefaultedJob, with_defaults
from finetune_api.job import UNSUPPORTED_TASKS, FineTuneJob
from finetune_api.modules import Module
from finetune_api.sources import locate
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.cli.parameter_tree import Anatomy, Leaf
from finetune_trainer.cli.plan_output import Preview
from finetune_trainer.cli.plan_table import Row, rows_of
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.plan import SchedulePlan
from finetune_trainer.planning import modules
from finetune_trainer.planning.presets import Proposal, propose

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TRAIN, VALIDATION, TEST = "data.train.source", "data.validation.source", "data.test.source"


def look_ahead(job: FineTuneJob, claim_paths: ClaimPaths) -> Preview:
    """Everything that can be known of a run from here.

    What a run would refuse is part of the answer: one has to see the rest to mend it.

    Raises:
        UserError: the task builds no model of this kind.
    """
    no_data = _missing_data(job, claim_paths)
    try:
        config, no_model = _config(job, claim_paths)
    except UserError as refusal:
        return _without_model(job, claim_paths, None, no_data, refusal)
    if config is None:
        return _without_model(job, claim_paths, no_model, no_data, None)
    task, mistake = _task(job, config)
    subject = _Subject(config, task)
    if no_data is None and mistake is None:
        return _whole(job, claim_paths, subject)
    return _partial(job, claim_paths, subject, no_data, mistake)


@dataclass(frozen=True)
class _Subject:
    """A model by its config, and what it is to learn, as far as that is clear."""

    config: PretrainedConfig
    task: str | None


def plan_schedules(job: DefaultedJob, per_epoch: int) -> SchedulePlan:
    """As much of a job's plan as schedules need: no parameters, no samples.

    Raises:
        UserError: a module would never train, its schedule does not fit the time it has, or nothing learns at a step.
    """
    total = modules.planned_steps(job.spec.training, per_epoch)
    plans = tuple(modules.plan_module(module, (), 0, total, per_epoch) for module in job.spec.modules)
    modules.check_something_learns(plans, total)
    return SchedulePlan(job, plans, total, per_epoch)


def count_samples(job: FineTuneJob, claim_paths: ClaimPaths) -> int:
    """How many samples there are to train on, from the footers of the data's files.

    Raises:
        UserError: the data are out of reach, or cannot be read.
    """
    spec = job.spec.data
    if gap := _out_of_reach(spec.train.source, TRAIN, claim_paths):
        raise UserError(f"how long the run is depends on its data. {gap}. Or say --samples N")
    from finetune_trainer import data

    rows = data.count_rows(data.resolve_files(spec.train, "data.train", claim_paths), data.BadRowPolicy.from_spec(spec))
    train, _ = data.split_sizes(spec, rows)
    return train


def _whole(job: FineTuneJob, claim_paths: ClaimPaths, subject: _Subject) -> Preview:
    """The run's own plan, as model and data are here."""
    from finetune_trainer.planning import model_loader
    from finetune_trainer.training import run

    try:
        prepared = run.prepare(job, claim_paths)
    except UserError as refusal:
        return _partial(job, claim_paths, subject, None, refusal)
    plan = prepared.plan
    anatomy = _anatomy(plan.job, model_loader.skeleton(prepared.task.auto_class, prepared.config))
    steps = (plan.planned_steps, plan.steps_per_epoch)
    proposal = _proposal(job, prepared.config, anatomy)
    return Preview(job, plan.job, tuple(rows_of(plan)), anatomy, plan, steps, proposal=proposal)


def _without_model(
    job: FineTuneJob, claim_paths: ClaimPaths, no_model: str | None, no_data: str | None, mistake: UserError | None
) -> Preview:
    filled = with_defaults(job, job.spec.task)
    steps, mistake = (None, mistake) if no_data or mistake else _steps(filled, claim_paths)
    rows = tuple(_row(module, None, steps) for module in filled.spec.modules)
    return Preview(job, filled, rows, steps=steps, unknown=_gaps(no_model, no_data), mistake=mistake)


def _partial(
    job: FineTuneJob, claim_paths: ClaimPaths, subject: _Subject, no_data: str | None, mistake: UserError | None
) -> Preview:
    """What the model tells, without its data, or about a job that no run would take."""
    filled = with_defaults(job, None if subject.task in UNSUPPORTED_TASKS else subject.task)
    anatomy = _anatomy(filled, _skeleton(subject))
    mistake = mistake or _ownership_mistake(filled, anatomy)
    steps, mistake = (None, mistake) if no_data or mistake else _steps(filled, claim_paths)
    rows = tuple(_row(module, anatomy, steps) for module in filled.spec.modules)
    proposal = _proposal(job, subject.config, anatomy)
    return Preview(job, filled, rows, anatomy, None, steps, _gaps(None, no_data), proposal, mistake)


def _gaps(no_model: str | None, no_data: str | None) -> tuple[str, ...]:
    gaps = (("which parameters each module owns", no_model), ("how many steps the run takes", no_data))
    return tuple(f"{what}, because {reason}" for what, reason in gaps if reason)


def _task(job: FineTuneJob, config: PretrainedConfig) -> tuple[str | None, UserError | None]:
    """What the model is to learn, and why a run would refuse that."""
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


def _row(module: Module, anatomy: Anatomy | None, steps: tuple[int, int] | None) -> Row:
    owned = [it.parameter for it in anatomy.leaves if module.name in it.owners] if anatomy else None
    return Row(
        module,
        None if owned is None else tuple(parameter.name for parameter in owned),
        None if owned is None else sum(parameter.numel for parameter in owned),
        modules.window(module.freeze, *steps) if steps and not module.frozen else None,
    )


def _steps(job: DefaultedJob, claim_paths: ClaimPaths) -> tuple[tuple[int, int] | None, UserError | None]:
    """All steps, and those of an epoch, or why a run would refuse the data, or schedules over so many."""
    try:
        per_epoch = modules.steps_per_epoch(job.spec.training, count_samples(job, claim_paths))
        return (plan_schedules(job, per_epoch).planned_steps, per_epoch), None
    except UserError as mistake:
        return None, mistake


def _skeleton(subject: _Subject) -> PreTrainedModel:
    from transformers import AutoModel

    from finetune_trainer.planning import model_loader
    from finetune_trainer.tasks import get_auto_class

    return model_loader.skeleton(get_auto_class(subject.task) if subject.task else AutoModel, subject.config)


def _anatomy(job: DefaultedJob, model: PreTrainedModel) -> Anatomy:
    """The model's parameters, each with the modules that match it."""
    from finetune_trainer.planning import model_loader

    parameters = model_loader.parameters_of(model)
    owners = modules.owners_of(job.spec.modules, parameters)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    leaves = (Leaf(it, shapes[it.name], tuple(owners[it.name])) for it in parameters)
    return Anatomy(type(model).__name__, tuple(leaves))


def _ownership_mistake(job: DefaultedJob, anatomy: Anatomy) -> UserError | None:
    try:
        modules.own(job.spec.modules, anatomy.parameters, job.spec.unmatched)
    except UserError as mistake:
        return mistake
    return None


def _proposal(job: FineTuneJob, config: PretrainedConfig, anatomy: Anatomy) -> Proposal | None:
    """Modules to start from, for a job that has none."""
    if job.spec.modules is not None:
        return None
    return propose(config.model_type, anatomy.kind, anatomy.parameters)


def _config(job: FineTuneJob, claim_paths: ClaimPaths) -> tuple[PretrainedConfig | None, str | None]:
    """The model's config, or why it is out of reach."""
    source = job.spec.model.source
    if gap := _out_of_reach(source, "model.source", claim_paths):
        return None, gap
    from finetune_trainer.planning import model_loader

    try:
        return model_loader.load_config(model_loader.find(job.spec.model, claim_paths)), None
    except RunError as error:
        if locate(source).scheme == "hf":  # a machine without a way to the hub is no mistake
            return None, str(error)
        raise


def _missing_data(job: FineTuneJob, claim_paths: ClaimPaths) -> str | None:
    """Why some of the data are out of reach; None where all are here."""
    spec = job.spec.data
    named = ((TRAIN, spec.train), (VALIDATION, spec.validation), (TEST, spec.test))
    sources = ((said, part.source) for said, part in named if part is not None and part.source is not None)
    return next((gap for said, source in sources if (gap := _out_of_reach(source, said, claim_paths))), None)


def _out_of_reach(source: str, said: str, claim_paths: ClaimPaths) -> str | None:
    """Why a claim is not here; None for what is here, or can be looked for here."""
    location = locate(source)
    if location.scheme != "pvc" or claim_paths.folder(location.name).is_dir():
        return None
    try:
        claim_paths.existing(source, said)
    except UserError as error:
        return str(error)
    return None
