"""The differences between two specs, by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.effects import Effect, effect_of, flatten


def diff_specs(old: Mapping[str, Any], new: Mapping[str, Any], effect: Effect) -> list[str]:
    """The fields with this effect that differ between two specs, as `path: old -> new`."""
    old_values, new_values = dict(flatten(old)), dict(flatten(new))
    paths = [path for path in {**old_values, **new_values} if old_values.get(path) != new_values.get(path)]
    return [f"{path}: {old_values.get(path)} -> {new_values.get(path)}" for path in paths if effect_of(path) is effect]
