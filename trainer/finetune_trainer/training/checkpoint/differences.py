"""The differences between two specs, by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def diff_specs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two specs, as `path: old -> new`."""
    old_values, new_values = dict(flatten(old)), dict(flatten(new))
    paths = [path for path in {**old_values, **new_values} if old_values.get(path) != new_values.get(path)]
    return [f"{path}: {old_values.get(path)} -> {new_values.get(path)}" for path in paths]


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a spec with their paths."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from flatten(inner, f"{path}[{position}]")
    else:
        yield path, value
