"""The differences between two specs, by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.effects import Effect, effect_of, flatten

MAX_SHOWN_CHANGES = 8


def diff_specs(old: Mapping[str, Any], new: Mapping[str, Any], effect: Effect) -> list[str]:
    """The fields with this effect that differ between two specs, as `path: old -> new`."""
    old_values, new_values = dict(flatten(old)), dict(flatten(new))
    paths = [path for path in {**old_values, **new_values} if old_values.get(path) != new_values.get(path)]
    return [
        f"{path}: {_to_text(old_values.get(path))} -> {_to_text(new_values.get(path))}"
        for path in paths
        if effect_of(path) is effect
    ]


def join_changes(changes: Sequence[str]) -> str:
    """Differences as one text, shortened if there are many."""
    shown, more = "; ".join(changes[:MAX_SHOWN_CHANGES]), len(changes) - MAX_SHOWN_CHANGES
    return f"{shown}; and {more} more" if more > 0 else shown


def _to_text(value: Any) -> str:
    return "not set" if value is None else str(value)
