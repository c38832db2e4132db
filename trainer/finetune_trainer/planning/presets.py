"""Proposes modules for a job without any: presets for well-known architectures, and a split by name for all others.

A proposal passes the same `assign_parameters` as a run, so it can be pasted and run.
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
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import format_number
from finetune_trainer.planning.parameters import ParameterInfo, assign_parameters
from finetune_trainer.planning.patterns import match_any

MAX_PARTS = 16
"""A model with more parts on one level is not proposed to be split by them."""
Globs = Annotated[list[Glob], Field(min_length=1)]


class PresetModule(Model):
    """One module of a preset."""

    name: ModuleName
    parameters: Globs
    exclude: Globs | None = None
    frozen: bool = False
    learning_rate: LearningRate | None = None
    description: str


class Preset(Model):
    """Modules for the models that it matches."""

    rules = (
        Rule("reference", "a learning rate needs a reference", "", lambda it: it.reference or not it.has_rates),
        Rule("modelTypes", "set modelTypes or architectures", "", lambda it: it.model_types or it.architectures),
    )

    name: str
    model_types: list[str] = []
    architectures: Globs | None = None
    description: str
    reference: str | None = None
    modules: Annotated[list[PresetModule], Field(min_length=2)]

    @property
    def has_rates(self) -> bool:
        return any(module.learning_rate for module in self.modules)

    def matches(self, model_type: str, model_class: str) -> bool:
        """Whether it is for models of this type and class."""
        if self.model_types and model_type not in self.model_types:
            return False
        return any(fnmatchcase(model_class, glob) for glob in self.architectures or ["*"])


@dataclass(frozen=True)
class ProposedModules:
    """Modules that can be pasted into a job.

    Args:
        preset: name of the preset; None for a split by name.
        description: how the modules are trained, in one line.
        reference: URL of the recipe.
        modules: the modules.
        comments: what each module is, in their order.
    """

    preset: str | None
    description: str
    reference: str | None
    modules: tuple[Module, ...]
    comments: tuple[str, ...]


@cache
def load_presets() -> tuple[Preset, ...]:
    """All presets, in the order in which they are tried."""
    from ruamel.yaml import YAML

    text = files("finetune_trainer.planning").joinpath("presets.yaml").read_text("utf-8")
    return TypeAdapter(tuple[Preset, ...]).validate_python(tuple(YAML(typ="safe", pure=True).load(text)))


def propose_modules(model_type: str, model_class: str, parameters: Sequence[ParameterInfo]) -> ProposedModules | None:
    """Modules for a model of this type and class; None if no split makes sense."""
    presets = (preset for preset in load_presets() if preset.matches(model_type, model_class))
    candidates = (*(_fit_preset(preset, parameters) for preset in presets), _split_by_name(parameters))
    return next((it for it in candidates if it and _is_valid(it, parameters)), None)


def _is_valid(proposal: ProposedModules, parameters: Sequence[ParameterInfo]) -> bool:
    try:
        assign_parameters(proposal.modules, parameters)
    except UserError:
        return False
    return len(proposal.modules) > 1


# Presets ---------------------------------------------------------------------------------------------------------


def _fit_preset(preset: Preset, parameters: Sequence[ParameterInfo]) -> ProposedModules:
    """A preset without the patterns and modules that match nothing in this model."""
    fitted = [(module, _fit_patterns(module, parameters)) for module in preset.modules]
    remaining = [(_module(patterns, module), module.description) for module, patterns in fitted if patterns]
    return ProposedModules(
        preset.name,
        preset.description,
        preset.reference,
        tuple(module for module, _ in remaining),
        tuple(comment for _, comment in remaining),
    )


def _fit_patterns(module: PresetModule, parameters: Sequence[ParameterInfo]) -> dict[str, Any] | None:
    """Name and patterns of a module without redundant patterns; None if it would own nothing."""
    patterns = list(_without_redundant(module.parameters, parameters))
    matched = [it for it in parameters if match_any(it.names, patterns)]
    excluded = list(_without_redundant(module.exclude or [], matched))
    if all(match_any(it.names, excluded) for it in matched):
        return None
    return {"name": module.name, "parameters": patterns} | ({"exclude": excluded} if excluded else {})


def _without_redundant(patterns: Sequence[str], parameters: Sequence[ParameterInfo]) -> Iterator[str]:
    """The patterns that match a parameter which no earlier pattern matches."""
    left = list(parameters)
    for pattern in patterns:
        remaining = [it for it in left if not match_any(it.names, [pattern])]
        if len(remaining) < len(left):
            yield pattern
        left = remaining


def _module(patterns: dict[str, Any], preset: PresetModule) -> Module:
    if preset.frozen:
        return Module.model_validate({**patterns, "frozen": True})
    return Module.model_validate({**patterns, "optimizer": _default_optimizer(preset.learning_rate)})


def _default_optimizer(learning_rate: float | None = None) -> dict[str, Any]:
    """The default optimizer of the API, at this learning rate."""
    default: dict[str, Any] = DEFAULT_MODULES[0]["optimizer"]
    return {**default, "learningRate": learning_rate or default["learningRate"]}


# Other models ----------------------------------------------------------------------------------------------------


def _split_by_name(parameters: Sequence[ParameterInfo]) -> ProposedModules | None:
    """A module for each part of the model, on the first level with several parts."""
    parts = _parts([it.name for it in parameters])
    if not 1 < len(parts) <= MAX_PARTS:
        return None
    members = {part: [it for it in parameters if it.name == part or it.name.startswith(f"{part}.")] for part in parts}
    modules = tuple(_part_module(part, index, members, parameters) for index, part in enumerate(parts))
    description = "no preset matches this model; these are its parts by name, as a starting point"
    return ProposedModules(None, description, None, modules, tuple(f"All of {part}." for part in parts))


def _parts(names: Sequence[str]) -> list[str]:
    depth = 1
    while True:
        parts = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))
        if len(parts) > 1 or parts == list(dict.fromkeys(names)):
            return parts
        depth += 1


def _part_module(
    part: str, index: int, members: dict[str, list[ParameterInfo]], parameters: Sequence[ParameterInfo]
) -> Module:
    pattern = part if any(it.name == part for it in members[part]) else f"{part}.*"
    others = [it.name for it in parameters if match_any(it.names, [pattern]) and it not in members[part]]
    document = {
        "name": _module_name(part) or f"part-{index}",
        "parameters": [pattern],
        "optimizer": _default_optimizer(),
    }
    return Module.model_validate(document | ({"exclude": others} if others else {}))


def _module_name(part: str) -> str:
    return re.sub("[^a-z0-9]+", "-", part.lower()).strip("-")[:63]


# YAML ------------------------------------------------------------------------------------------------------------


def modules_yaml(proposal: ProposedModules) -> str:
    """The modules as YAML, indented to be pasted below `spec`."""
    return "\n".join(["  modules:", *_yaml_lines(proposal)])


def _yaml_lines(proposal: ProposedModules) -> Iterator[str]:
    for module, comment in zip(proposal.modules, proposal.comments, strict=True):
        yield f"    # {comment}"
        yield f"    - name: {json.dumps(module.name) if module.name.isdigit() else module.name}"
        yield f"      parameters: {json.dumps(module.parameters)}"
        if module.exclude:
            yield f"      exclude: {json.dumps(module.exclude)}"
        if module.optimizer is None:
            yield "      frozen: true"
        else:
            rate = format_number(module.optimizer.learning_rate)
            yield f"      optimizer: {{type: {module.optimizer.type}, learningRate: {rate}}}"
