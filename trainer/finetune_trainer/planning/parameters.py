"""Which module owns which parameter. Every parameter has exactly one owner; anything else is an error before step 1.

Only names and shapes are looked at, so `finetune plan` needs no weights, and this file no torch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.modules import Module
from finetune_api.suggestions import closest_matches
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some, pluralize
from finetune_trainer.planning.patterns import match_any


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of the model; a tied weight is one parameter with several names."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def label(self) -> str:
        """The name for messages; a tied parameter with all its names."""
        return f"{self.name} (tied to {', '.join(self.names[1:])})" if self.names[1:] else self.name

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class ParameterAssignment:
    """The owner of every parameter.

    Args:
        by_module: names of the parameters of each module, in the order of the manifest and of the model.
        numel: number of elements in them, by module.
        unmatched: names that no module matches.
    """

    by_module: Mapping[str, tuple[str, ...]]
    numel: Mapping[str, int]
    unmatched: tuple[str, ...]


def assign_parameters(
    modules: Sequence[Module], parameters: Sequence[ParameterInfo], unmatched: Literal["Forbid", "Freeze"] = "Forbid"
) -> ParameterAssignment:
    """Find the one owner of every parameter.

    Raises:
        UserError: a pattern matches nothing, a parameter matches several modules or none, or its module's optimizer
            does not support it.
    """
    _check_patterns(modules, [name for parameter in parameters for name in parameter.names])
    owners = matching_modules(modules, parameters)
    _check_single_owner({parameter.label: owners[parameter.name] for parameter in parameters})
    orphans = [name for name, found in owners.items() if not found]
    if orphans and unmatched == "Forbid":
        raise UserError(_unmatched_message(orphans, list(owners)))
    by_module = {m.name: tuple(name for name, found in owners.items() if m.name in found) for m in modules}
    for index, module in enumerate(modules):
        if not by_module[module.name]:
            raise UserError(f"modules[{index}].exclude ({module.name}): excludes every parameter of the module")
    sizes = {parameter.name: parameter.numel for parameter in parameters}
    numel = {module: sum(sizes[name] for name in names) for module, names in by_module.items()}
    assignment = ParameterAssignment(by_module, numel, tuple(orphans))
    _check_muon(modules, assignment, parameters)
    return assignment


def matching_modules(modules: Sequence[Module], parameters: Sequence[ParameterInfo]) -> dict[str, list[str]]:
    """Names of the modules that match each parameter: exactly one, unless the manifest is invalid."""
    return {parameter.name: [m.name for m in modules if _selects(m, parameter)] for parameter in parameters}


def _selects(module: Module, parameter: ParameterInfo) -> bool:
    return match_any(parameter.names, module.parameters) and not match_any(parameter.names, module.exclude or ())


def _check_patterns(modules: Sequence[Module], names: Sequence[str]) -> None:
    for index, module in enumerate(modules):
        for field, patterns in (("parameters", module.parameters), ("exclude", module.exclude or ())):
            for pattern in patterns:
                if not match_any(names, [pattern]):
                    field_path = f"modules[{index}].{field} ({module.name})"
                    hint = _pattern_hint(pattern, names)
                    raise UserError(f"{field_path}: {pattern!r} matches no parameter of the model; {hint}")


def _pattern_hint(pattern: str, names: Sequence[str]) -> str:
    globs = dict.fromkeys(f"{prefix}.*" for name in names for prefix in _prefixes(name))
    candidates = [*globs, *names] if pattern.endswith("*") else [*names, *globs]
    if near := closest_matches(pattern, candidates, limit=2):
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"the model has {join_some(_parts_below(_common_prefix(pattern, names), names))}"


def _common_prefix(pattern: str, names: Sequence[str]) -> str:
    """The longest prefix of the pattern, up to a dot, that is a prefix of names; empty if there is none."""
    prefixes = [f"{prefix}." for prefix in _prefixes(pattern)]
    return next((it for it in reversed(prefixes) if any(name.startswith(it) for name in names)), "")


def _parts_below(prefix: str, names: Sequence[str]) -> list[str]:
    """Patterns for the parts of the model directly below a prefix: `encoder.layers.*`, `encoder.scale`."""
    rests = (name.removeprefix(prefix).partition(".") for name in names if name.startswith(prefix))
    return list(dict.fromkeys(f"{prefix}{part}{'.*' if dot else ''}" for part, dot, _ in rests))


def _check_single_owner(owners: Mapping[str, Sequence[str]]) -> None:
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, found in owners.items():
        if len(found) > 1:
            shared[tuple(found)].append(name)
    for modules, names in shared.items():
        raise UserError(
            f"modules: {' and '.join(map(repr, modules))} match the same {pluralize(len(names), 'parameter')}: "
            f"{join_some(names)}; each parameter must match exactly one module: narrow a pattern, or use exclude"
        )


def _check_muon(
    modules: Sequence[Module], assignment: ParameterAssignment, parameters: Sequence[ParameterInfo]
) -> None:
    """torch.optim.Muon raises only once the weights are loaded, and names no parameter."""
    not_2d = {parameter.name for parameter in parameters if parameter.ndim != 2}
    for index, module in enumerate(modules):
        names = assignment.by_module[module.name]
        unsupported = [name for name in names if name in not_2d]
        if unsupported and module.optimizer is not None and module.optimizer.type == "Muon":
            groups = join_some(with_counts(group_by_suffix(unsupported, names)))
            raise UserError(
                f"modules[{index}].optimizer ({module.name}): Muon supports 2-D parameters only, not "
                f"{pluralize(len(unsupported), 'parameter')} of the module: {groups}; "
                "exclude them, and put them in a module with another optimizer, e.g. AdamW"
            )


def _unmatched_message(orphans: Sequence[str], names: Sequence[str]) -> str:
    verb = "matches" if len(orphans) == 1 else "match"
    return (
        f"modules: {pluralize(len(orphans), 'parameter')} {verb} no module: "
        f"{join_some(with_counts(group_by_prefix(orphans, names)))}; "
        "add them to a module, or freeze them with unmatched: Freeze"
    )


# Groups of names in messages -------------------------------------------------------------------------------------


def group_by_prefix(some: Sequence[str], names: Sequence[str]) -> list[tuple[str, int]]:
    """Summarize some of the names as the shortest globs `a.b.*` that match only these, with the number of names."""
    return _group(some, names, lambda name: [f"{prefix}.*" for prefix in _prefixes(name)])


def group_by_suffix(some: Sequence[str], names: Sequence[str]) -> list[tuple[str, int]]:
    """The same with globs `*.bias`."""
    return _group(some, names, lambda name: [f"*.{suffix}" for suffix in _suffixes(name)])


def _group(some: Sequence[str], names: Sequence[str], globs: Callable[[str], Sequence[str]]) -> list[tuple[str, int]]:
    total = Counter(glob for name in names for glob in globs(name))
    selected = Counter(glob for name in some for glob in globs(name))

    def group(name: str) -> str:
        return next((glob for glob in globs(name) if selected[glob] == total[glob] > 1), name)

    return list(Counter(map(group, some)).items())


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1)]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def with_counts(groups: Iterable[tuple[str, int]]) -> list[str]:
    """Groups of names as text, each with its number of names."""
    return [f"{group} ({count})" if count > 1 else group for group, count in groups]
