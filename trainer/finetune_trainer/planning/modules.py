"""Which module owns which parameter, and when each of them is trainable: the plan of a run.

Every parameter has exactly one owner; whatever else a manifest says is an error before the first step. All of it is
about names and sizes, so that `finetune plan` needs no weights and these functions need no torch.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from finetune_api.defaults import EffectiveJob
from finetune_api.modules import Freeze, Module
from finetune_api.schedules import ScheduleError, build_schedule
from finetune_api.training import Training
from finetune_trainer.cli.plan_table import plural
from finetune_trainer.errors import UserError
from finetune_trainer.plan import ModulePlan, RunPlan, Window

SHOWN = 5
"""So many names are enough to recognise what is meant."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model; a tied weight is one parameter with several names, the first of which is its own."""

    names: tuple[str, ...]
    numel: int
    dimensions: int

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Ownership:
    """Who owns what.

    Args:
        by_module: parameter names by module, in the manifest's and the model's order.
        numel: how many numbers those hold, by module.
        unmatched: names that nobody owns.
    """

    by_module: Mapping[str, tuple[str, ...]]
    numel: Mapping[str, int]
    unmatched: tuple[str, ...]


def own(
    modules: Sequence[Module], parameters: Sequence[Parameter], unmatched: Literal["Forbid", "Freeze"] = "Forbid"
) -> Ownership:
    """Find the one owner of every parameter.

    Raises:
        UserError: a pattern matches nothing, or a parameter has two owners, none, or one that it cannot learn by.
    """
    _check_patterns(modules, [name for parameter in parameters for name in parameter.names])
    owners = owners_of(modules, parameters)
    _check_one_owner(owners)
    orphans = [name for name, found in owners.items() if not found]
    if orphans and unmatched == "Forbid":
        raise UserError(_no_owner(orphans, list(owners)))
    by_module = {m.name: tuple(name for name, found in owners.items() if m.name in found) for m in modules}
    for position, module in enumerate(modules):
        if not by_module[module.name]:
            raise UserError(f"modules[{position}] {module.name!r} owns nothing: its exclude takes out all it matches")
    sizes = {parameter.name: parameter.numel for parameter in parameters}
    numel = {module: sum(sizes[name] for name in names) for module, names in by_module.items()}
    owned = Ownership(by_module, numel, tuple(orphans))
    _check_matrices(modules, owned, parameters)
    return owned


def owners_of(modules: Sequence[Module], parameters: Sequence[Parameter]) -> dict[str, list[str]]:
    """The modules that match each parameter: one, if all is well."""
    return {parameter.name: [m.name for m in modules if _owns(m, parameter)] for parameter in parameters}


def plan_run(
    job: EffectiveJob, parameters: Sequence[Parameter], train_samples: int, validation_samples: int
) -> RunPlan:
    """Decide everything about an effective job that depends on the model's names and the data's sizes.

    Raises:
        UserError: what the manifest says does not fit the model or the data.
    """
    modules = job.spec.modules
    per_epoch = steps_per_epoch(job.spec.training, train_samples)
    total = planned_steps(job.spec.training, per_epoch)
    owned = own(modules, parameters, job.spec.unmatched)
    plans = tuple(plan_module(m, owned.by_module[m.name], owned.numel[m.name], total, per_epoch) for m in modules)
    check_something_learns(plans, total)
    return RunPlan(job, plans, total, per_epoch, owned.unmatched, train_samples, validation_samples)


def steps_per_epoch(training: Training, samples: int) -> int:
    """The optimizer steps of one pass over so many samples.

    Raises:
        UserError: they do not fill one batch.
    """
    if not samples:
        raise UserError("data.train.source: the training set is empty")
    if samples < training.batch_size:
        raise UserError(
            f"training.batchSize is {training.batch_size}, but the training set has only {samples} samples: "
            f"a batch of at most {samples} is possible"
        )
    return samples // training.batch_size


def planned_steps(training: Training, per_epoch: int) -> int:
    """The optimizer steps of the whole run, if it does not stop early.

    Raises:
        UserError: there are none.
    """
    if training.steps:
        return training.steps
    epochs = training.epochs or 1.0
    steps = round(epochs * per_epoch)
    if not steps:
        raise UserError(
            f"training.epochs: {epochs:g} epochs of {plural(per_epoch, 'step')} are no whole step, so nothing would be "
            f"trained: say at least {1 / per_epoch:.2g}, or training.steps: 1"
        )
    return steps


def window(freeze: Freeze | None, total: int, steps_per_epoch: int) -> Window:
    """The optimizer steps at which a module with this freeze is trainable."""
    if freeze is None:
        return Window(0, total)
    start = freeze.until_step or round((freeze.until_epoch or 0.0) * steps_per_epoch)
    end = freeze.from_step or (round(freeze.from_epoch * steps_per_epoch) if freeze.from_epoch else total)
    return Window(start, min(end, total))


def plan_module(module: Module, names: tuple[str, ...], numel: int, total: int, per_epoch: int) -> ModulePlan:
    """Decide when a module is trainable, and lay its schedule out over that.

    Raises:
        UserError: it would never train, or its schedule does not fit the time it has.
    """
    if module.frozen:
        return ModulePlan(module, names, numel, Window(0, 0), None)
    trainable = window(module.freeze, total, per_epoch)
    if not trainable.length:
        raise UserError(
            f"modules {module.name!r}: freeze leaves it nothing to train: it would be trainable from step "
            f"{trainable.start} to {trainable.end} of {total}; train longer, thaw sooner, or say frozen: true"
        )
    try:
        schedule = build_schedule(module.schedule or [], trainable.length, per_epoch)
    except ScheduleError as error:
        raise UserError(f"modules {module.name!r}: {error}") from error
    return ModulePlan(module, names, numel, trainable, schedule)


def check_something_learns(plans: Sequence[ModulePlan], total: int) -> None:
    """Refuse a run with steps at which every module is frozen.

    Raises:
        UserError: there is one.
    """
    reached = 0
    for start, end in sorted((plan.window.start, plan.window.end) for plan in plans if plan.window.length):
        if start > reached:
            break
        reached = max(reached, end)
    if reached < total:
        raise UserError(f"every module is frozen at step {reached} of {total}: at each step at least one has to learn")


def _owns(module: Module, parameter: Parameter) -> bool:
    return _any_match(parameter.names, module.parameters) and not _any_match(parameter.names, module.exclude or ())


def _any_match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_patterns(modules: Sequence[Module], names: Sequence[str]) -> None:
    for position, module in enumerate(modules):
        for field, patterns in (("parameters", module.parameters), ("exclude", module.exclude or ())):
            for pattern in patterns:
                if not _any_match(names, [pattern]):
                    place = f"modules[{position}].{field} ({module.name})"
                    raise UserError(f"{place}: {pattern!r} matches no parameter of the model{_nearest(pattern, names)}")


def _nearest(pattern: str, names: Sequence[str]) -> str:
    globs = dict.fromkeys(f"{prefix}.*" for name in names for prefix in _prefixes(name))
    candidates = [*globs, *names] if pattern.endswith("*") else [*names, *globs]
    near = difflib.get_close_matches(pattern, candidates, n=2, cutoff=0.7)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    tops = list(dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in names))
    return f"; the model has {_listed(tops)}"


def _check_one_owner(owners: Mapping[str, Sequence[str]]) -> None:
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, found in owners.items():
        if len(found) > 1:
            shared[tuple(found)].append(name)
    for modules, names in shared.items():
        who = " and ".join(map(repr, modules))
        raise UserError(
            f"modules {who} all match {_count(names)}: {_listed(names)}; each parameter has one owner: "
            f"narrow a pattern, or take them out of one module with exclude"
        )


def _check_matrices(modules: Sequence[Module], owned: Ownership, parameters: Sequence[Parameter]) -> None:
    """Muon takes matrices and nothing else; torch would say so after the weights were loaded, and name no parameter."""
    others = {parameter.name for parameter in parameters if parameter.dimensions != 2}
    for position, module in enumerate(modules):
        names = owned.by_module[module.name]
        odd = [name for name in names if name in others]
        if odd and module.optimizer is not None and module.optimizer.type == "Muon":
            raise UserError(
                f"modules[{position}].optimizer ({module.name}): Muon takes matrices only, and {_count(odd)} of the "
                f"module {'is' if len(odd) == 1 else 'are'} none: {_listed(_counted(grouped_by_ending(odd, names)))}; "
                "exclude them here, and put them into a module with another optimizer, e.g. AdamW"
            )


def _no_owner(orphans: Sequence[str], names: Sequence[str]) -> str:
    verb = "belongs" if len(orphans) == 1 else "belong"
    return (
        f"{_count(orphans)} {verb} to no module: {_listed(_counted(grouped(orphans, names)))}; "
        "name them in a module, or leave them as they are with unmatched: Freeze"
    )


def grouped(some: Sequence[str], names: Sequence[str]) -> list[tuple[str, int]]:
    """Sum parameters up under the shortest globs that match them and no others, with how many each stands for."""
    return _summed_up(some, names, lambda name: [f"{prefix}.*" for prefix in _prefixes(name)])


def grouped_by_ending(some: Sequence[str], names: Sequence[str]) -> list[tuple[str, int]]:
    """The same by how names end: `*.bias`."""
    return _summed_up(some, names, lambda name: [f"*.{suffix}" for suffix in _suffixes(name)])


def _summed_up(
    some: Sequence[str], names: Sequence[str], globs: Callable[[str], Sequence[str]]
) -> list[tuple[str, int]]:
    everywhere = Counter(glob for name in names for glob in globs(name))
    here = Counter(glob for name in some for glob in globs(name))

    def group(name: str) -> str:
        return next((glob for glob in globs(name) if here[glob] == everywhere[glob] > 1), name)

    return list(Counter(map(group, some)).items())


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1)]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _counted(groups: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{group} ({count})" if count > 1 else group for group, count in groups]


def _count(names: Sequence[str]) -> str:
    return "1 parameter" if len(names) == 1 else f"{len(names)} parameters"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
