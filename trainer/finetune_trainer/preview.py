"""What can be known of a run before it: what `finetune plan` shows and `finetune plot` draws.

With model and data at hand that is the run's own plan. On a laptop whose claims are in the cluster it is less; then
every gap is named, and everything else is found by the same functions that plan a run, so that both say the same.

The heavy libraries are imported by the functions that look at model or data: schedules need neither, and are drawn in a
second or two instead of ten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_api import defaults
from finetune_api.job import FineTuneJob
from finetune_api.modules import Module
from finetune_api.sources import locate
from finetune_trainer import modules
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.events import RunPlan
from finetune_trainer.modules import Ownership
from finetune_trainer.places import Places
from finetune_trainer.tables import Preview, Row, rows_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TRAIN, VALIDATION = "data.train.source", "data.validation.source"


def look_ahead(job: FineTuneJob, places: Places) -> Preview:
    """Everything that can be known of a run from here.

    Raises:
        UserError: what is within reach does not fit.
    """
    from finetune_trainer import run

    config, no_model = _config(job, places)
    no_data = _missing_data(job, places)
    if no_model or no_data:
        return _partial(job, places, config, no_model, no_data)
    plan = run.plan(job, places)
    steps = (plan.total_steps, plan.steps_per_epoch)
    return Preview(job, plan.job, tuple(rows_of(plan)), plan.unmatched, plan, steps)


def effective(job: FineTuneJob, task: str | None = None) -> FineTuneJob:
    """Fill in defaults; without a task all but how it is evaluated, which is all that depends on it."""
    if known := task or job.spec.task:
        return defaults.effective(job, known)
    filled = defaults.effective(job, "Contrastive")
    undecided = {"task": None, "evaluation": job.spec.evaluation}
    return filled.model_copy(update={"spec": filled.spec.model_copy(update=undecided)})


def plan_schedules(job: FineTuneJob, per_epoch: int) -> RunPlan:
    """As much of an effective job's plan as schedules need: no parameters, no samples.

    Raises:
        UserError: a module would never train, or its schedule does not fit the time it has.
    """
    total = modules.total_steps(job.spec.training, per_epoch)
    plans = tuple(modules.plan_module(module, (), 0, total, per_epoch) for module in job.spec.modules or ())
    return RunPlan(job, plans, (), total, per_epoch, 0, 0)


def count_samples(job: FineTuneJob, places: Places) -> int:
    """How many samples there are to train on, from the footers of the data's files.

    Raises:
        UserError: the data are out of reach, or cannot be read.
    """
    source = job.spec.data.train.source
    if gap := _out_of_reach(source, TRAIN, places):
        raise UserError(f"how long the run is depends on its data. {gap}. Or say --samples N")
    from finetune_trainer import data

    train, _ = data.split_sizes(job.spec.data, len(data.find(source, TRAIN, places)))
    return train


def _partial(
    job: FineTuneJob, places: Places, config: PretrainedConfig | None, no_model: str | None, no_data: str | None
) -> Preview:
    """What can be known without the model, without the data, or without either."""
    from finetune_trainer.tasks import detect

    filled = effective(job, job.spec.task or (detect(config) if config else None))
    steps = None if no_data else _steps(filled, places)
    owned = _ownership(filled, config) if config else None
    rows = tuple(_row(module, owned, steps) for module in filled.spec.modules or ())
    gaps = (("which parameters each module owns", no_model), ("how many steps the run takes", no_data))
    unknown = tuple(f"{what}, because {reason}" for what, reason in gaps if reason)
    return Preview(job, filled, rows, owned.unmatched if owned else (), None, steps, unknown)


def _row(module: Module, owned: Ownership | None, steps: tuple[int, int] | None) -> Row:
    return Row(
        module,
        owned.by_module[module.name] if owned else None,
        owned.elements[module.name] if owned else None,
        modules.window(module.freeze, *steps) if steps and not module.frozen else None,
    )


def _steps(job: FineTuneJob, places: Places) -> tuple[int, int]:
    """All steps, and those of an epoch."""
    per_epoch = modules.steps_per_epoch(job.spec.training, count_samples(job, places))
    return modules.total_steps(job.spec.training, per_epoch), per_epoch


def _ownership(job: FineTuneJob, config: PretrainedConfig) -> Ownership:
    """Who owns what, from the model's config alone."""
    from finetune_trainer import models
    from finetune_trainer.tasks import TASKS

    spec = job.spec
    assert spec.task is not None, "it was said, or the config told it"
    assert spec.modules is not None, "an effective job has modules"
    parameters = models.parameters_of(models.skeleton(TASKS[spec.task], config))
    return modules.own(spec.modules, parameters, spec.unmatched)


def _config(job: FineTuneJob, places: Places) -> tuple[PretrainedConfig | None, str | None]:
    """The model's config, or why it is out of reach."""
    source = job.spec.model.source
    if gap := _out_of_reach(source, "model.source", places):
        return None, gap
    from finetune_trainer import models

    try:
        return models.load_config(models.find(job.spec.model, places)), None
    except RunError as error:
        if locate(source).scheme == "hf":  # a machine without a way to the hub is no mistake
            return None, str(error)
        raise


def _missing_data(job: FineTuneJob, places: Places) -> str | None:
    """Why training or validation data are out of reach; None where all are here."""
    train, validation = job.spec.data.train, job.spec.data.validation
    gap = _out_of_reach(train.source, TRAIN, places)
    if gap is None and validation is not None and validation.source is not None:
        return _out_of_reach(validation.source, VALIDATION, places)
    return gap


def _out_of_reach(source: str, said: str, places: Places) -> str | None:
    """Why a claim is not here; None for what is here, or can be looked for here."""
    location = locate(source)
    if location.scheme != "pvc" or places.folder(location.name).is_dir():
        return None
    try:
        places.existing(source, said)
    except UserError as error:
        return str(error)
    return None
