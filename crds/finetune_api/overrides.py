"""`--set path=value`: change one field of a manifest without editing it.

A path walks the manifest's own words from `spec` on; list items are named by their `name` or by their position:
`modules.visual.optimizer.learningRate=1e-4`, `modules.textual.schedule.0.steps=50`.
"""

from __future__ import annotations

from typing import Any

from finetune_api.kubectl_yaml import ReadingError, read


class OverrideError(ValueError):
    """A `--set` that cannot be applied; the message names the setting and what would be possible."""


def apply_overrides(document: dict[str, Any], settings: list[str] | tuple[str, ...]) -> None:
    """Apply `path=value` settings to a manifest in place.

    Raises:
        OverrideError: no `=`, no such list item, or a path through something that holds nothing.
    """
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            raise OverrideError(f"--set {setting!r}: expected path=value, e.g. training.epochs=1")
        spec = document.get("spec")
        if not isinstance(spec, dict):
            spec = document["spec"] = {}
        _place(spec, path.removeprefix("spec.").split("."), _scalar(value, setting), setting)


def _place(node: Any, keys: list[str], value: object, setting: str) -> None:
    for key in keys[:-1]:
        node = _step(node, key, setting)
    last = keys[-1]
    if isinstance(node, list):
        node[_position(node, last, setting)] = value
    else:
        node[last] = value


def _step(node: Any, key: str, setting: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, setting)]
    child = node.setdefault(key, {})
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise OverrideError(f"--set {setting!r}: {key} is {child!r}, which has nothing inside")
    return child


def _position(items: list[Any], key: str, setting: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    choices = ", ".join(str(name) for name in names if name) or f"0 to {len(items) - 1}"
    raise OverrideError(f"--set {setting!r}: no item {key!r} here; there is {choices}")


def _scalar(text: str, setting: str) -> object:
    """The value as it would be read from a file: `1e-4` is a number, `true` a boolean, `[a, b]` a list."""
    try:
        documents = read(text)
    except ReadingError:
        return text
    for document in documents:
        for _, problem in document.ambiguous:
            raise OverrideError(f"--set {setting!r}: {problem}")
    return documents[0].value if documents else None
