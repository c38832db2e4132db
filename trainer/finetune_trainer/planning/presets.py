"""Modules to start from: where well-known models come apart, as data, and a split by name for all others.

A proposal is checked by the same `own` that a run is planned with, so that whatever is proposed can be pasted and run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from finetune_api.base import Model, Rule
from finetune_api.defaults import DEFAULT_MODULES
from finetune_api.modules import Glob, Module, ModuleName
from finetune_api.optimizers import LearningRate
from finetune_trainer.cli.plan_table import number
from finetune_trainer.errors import UserError
from finetune_trainer.planning.modules import Parameter, own

TOO_MANY = 16
"""A model that falls into more parts at once is not understood by their list."""
Globs = Annotated[list[Glob], Field(min_length=1)]


class PresetModule(Model):
    """One module of a preset."""

    name: ModuleName
    parameters: Globs
    exclude: Globs | None = None
    frozen: bool = False
    learning_rate: LearningRate | None = None
    why: str


class Preset(Model):
    """Modules for the models it speaks of."""

    rules = (
        Rule("source", "a learning rate needs a source", "", lambda it: it.source or not it.has_rates),
        Rule("modelTypes", "say which models it is for", "", lambda it: it.model_types or it.architectures),
    )

    name: str
    model_types: list[str] = []
    architectures: Globs | None = None
    why: str
    source: str | None = None
    modules: Annotated[list[PresetModule], Field(min_length=2)]

    @property
    def has_rates(self) -> bool:
        return any(module.learning_rate for module in self.modules)

    def speaks_of(self, model_type: str, kind: str) -> bool:
        """Whether it is for models of this type, built as this class."""
        if self.model_types and model_type not in self.model_types:
            return False
        return any(fnmatchcase(kind, glob) for glob in self.architectures or ["*"])


@dataclass(frozen=True)
class Proposal:
    """Modules that could be pasted into a job.

    Args:
        preset: the name of the preset; None for a split by name.
        why: one line.
        source: the recipe that it follows.
        modules: what it proposes.
        notes: what each module is, in their order.
    """

    preset: str | None
    why: str
    source: str | None
    modules: tuple[Module, ...]
    notes: tuple[str, ...]


@cache
def presets() -> tuple[Preset, ...]:
    """All presets, in the order in which they are tried."""
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(files("finetune_trainer").joinpath("presets.yaml").read_text("utf-8"))
    return TypeAdapter(tuple[Preset, ...]).validate_python(tuple(document))


def propose(model_type: str, kind: str, parameters: Sequence[Parameter]) -> Proposal | None:
    """Modules for a model of this type, built as this class; None where even a split by name says nothing."""
    known = (preset for preset in presets() if preset.speaks_of(model_type, kind))
    fitting = (_fitted(preset, parameters) for preset in known)
    proposals = (*fitting, _by_name(parameters))
    return next((proposal for proposal in proposals if proposal and _holds(proposal, parameters)), None)


def _holds(proposal: Proposal, parameters: Sequence[Parameter]) -> bool:
    try:
        own(proposal.modules, parameters)
    except UserError:
        return False
    return len(proposal.modules) > 1


# Presets ---------------------------------------------------------------------------------------------------------


def _fitted(preset: Preset, parameters: Sequence[Parameter]) -> Proposal:
    """A preset without what this model does not have."""
    fitted = [(module, _narrowed(module, parameters)) for module in preset.modules]
    remaining = [(_module(document, module), module.why) for module, document in fitted if document]
    return Proposal(
        preset.name,
        preset.why,
        preset.source,
        tuple(module for module, _ in remaining),
        tuple(note for _, note in remaining),
    )


def _narrowed(module: PresetModule, parameters: Sequence[Parameter]) -> dict[str, Any] | None:
    """Name and patterns of a module, those left out that change nothing; None for one that would own nothing."""
    patterns = list(_effective(module.parameters, parameters))
    matched = [it for it in parameters if _matches(it, patterns)]
    excluded = list(_effective(module.exclude or [], matched))
    if all(_matches(it, excluded) for it in matched):
        return None
    return {"name": module.name, "parameters": patterns} | ({"exclude": excluded} if excluded else {})


def _effective(patterns: Sequence[str], parameters: Sequence[Parameter]) -> Iterator[str]:
    """The patterns that match something which those before them do not."""
    left = list(parameters)
    for pattern in patterns:
        remaining = [it for it in left if not _matches(it, [pattern])]
        if len(remaining) < len(left):
            yield pattern
        left = remaining


def _matches(parameter: Parameter, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in parameter.names for pattern in patterns)


def _module(document: dict[str, Any], preset: PresetModule) -> Module:
    if preset.frozen:
        return Module.model_validate({**document, "frozen": True})
    return Module.model_validate({**document, "optimizer": _optimizer(preset.learning_rate)})


def _optimizer(rate: float | None = None) -> dict[str, Any]:
    """The default optimizer of the language, at this rate."""
    default: dict[str, Any] = DEFAULT_MODULES[0]["optimizer"]
    return {**default, "learningRate": rate or default["learningRate"]}


# Other models ----------------------------------------------------------------------------------------------------


def _by_name(parameters: Sequence[Parameter]) -> Proposal | None:
    """A module for each part of the model at the first level that has several."""
    parts = _parts([it.name for it in parameters])
    if not 1 < len(parts) <= TOO_MANY:
        return None
    owners = {part: [it for it in parameters if _under(it.name, part)] for part in parts}
    modules = tuple(_part_module(part, position, owners, parameters) for position, part in enumerate(parts))
    why = "no preset is known for this model: these are its parts by name, as a starting point"
    return Proposal(None, why, None, modules, tuple(f"All of {part}." for part in parts))


def _parts(names: Sequence[str]) -> list[str]:
    depth = 1
    while True:
        parts = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))
        if len(parts) > 1 or parts == list(dict.fromkeys(names)):
            return parts
        depth += 1


def _under(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _part_module(
    part: str, position: int, owners: dict[str, list[Parameter]], parameters: Sequence[Parameter]
) -> Module:
    pattern = part if any(it.name == part for it in owners[part]) else f"{part}.*"
    foreign = [it.name for it in parameters if _matches(it, [pattern]) and it not in owners[part]]
    document = {"name": _label(part) or f"part-{position}", "parameters": [pattern], "optimizer": _optimizer()}
    return Module.model_validate(document | ({"exclude": foreign} if foreign else {}))


def _label(part: str) -> str:
    return re.sub("[^a-z0-9]+", "-", part.lower()).strip("-")[:63]


# As text ---------------------------------------------------------------------------------------------------------


def modules_yaml(proposal: Proposal) -> str:
    """The proposal as it stands in a manifest, below `spec`."""
    return "\n".join(["  modules:", *_lines(proposal)])


def _lines(proposal: Proposal) -> Iterator[str]:
    for module, note in zip(proposal.modules, proposal.notes, strict=True):
        yield f"    # {note}"
        yield f"    - name: {json.dumps(module.name) if module.name.isdigit() else module.name}"
        yield f"      parameters: {json.dumps(module.parameters)}"
        if module.exclude:
            yield f"      exclude: {json.dumps(module.exclude)}"
        if module.optimizer is None:
            yield "      frozen: true"
        else:
            rate = number(module.optimizer.learning_rate)
            yield f"      optimizer: {{type: {module.optimizer.type}, learningRate: {rate}}}"
