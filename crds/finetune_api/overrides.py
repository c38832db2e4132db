"""`--set path=value`: changes one field of a manifest without editing the file.

A path is relative to `spec`, or starts with `spec` or `metadata`. List items are selected by name or by index:
`modules.visual.optimizer.learningRate=1e-4`, `spec.modules[0].schedule[1].steps=50`.
"""

from __future__ import annotations

from typing import Any

from finetune_api.field_paths import format_path, split_path
from finetune_api.kubectl_yaml import FieldPath, PathElement, YamlParseError, parse_yaml
from finetune_api.suggestions import closest_match

ROOTS = ("spec", "metadata")


class OverrideError(ValueError):
    """An override that cannot be applied; the message names what was found and what was expected."""


def apply_override(manifest: dict[str, Any], override: str) -> FieldPath:
    """Apply one `path=value` to a manifest in place.

    Returns:
        The path of the field that was set.

    Raises:
        OverrideError: it is not of the form `path=value`, or its path does not exist.
    """
    text, equals, value = override.partition("=")
    try:
        keys = split_path(text)
    except ValueError:
        keys = []
    if not (equals and keys):
        raise OverrideError("expected path=value, e.g. training.epochs=1")
    if keys[0] not in ROOTS:
        keys = ["spec", *keys]
    return _set_value(manifest, keys, _parse_value(value))


def _set_value(manifest: Any, keys: list[str], value: object) -> FieldPath:
    node = manifest
    path: FieldPath = ()
    for key in keys[:-1]:
        node, path = _child(node, key, path)
    last = _list_index(node, keys[-1], path) if isinstance(node, list) else keys[-1]
    node[last] = value
    return (*path, last)


def _child(node: Any, key: str, path: FieldPath) -> tuple[Any, FieldPath]:
    """The mapping or list below a key, which is created if there is none."""
    is_list = isinstance(node, list)
    element: PathElement = _list_index(node, key, path) if is_list else key
    child = node[element] if is_list or element in node else None
    if child is None:
        child = node[element] = {}
    child_path = (*path, element)
    if not isinstance(child, dict | list):
        raise OverrideError(f"{format_path(child_path)} is {child!r}, which has no fields")
    return child, child_path


def _list_index(items: list[Any], key: str, path: FieldPath) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    near = closest_match(key, [str(name) for name in names if name])
    hint = f"; did you mean {near!r}?" if near else ""
    choices = ", ".join(f"{index} ({name})" if name else str(index) for index, name in enumerate(names)) or "none"
    raise OverrideError(f"{format_path(path)} has no item {key!r}; available: {choices}{hint}")


def _parse_value(text: str) -> object:
    """The value as a file would define it: `1e-4` is a number, `true` a boolean, `[a, b]` a list.

    Raises:
        OverrideError: parsers disagree about the value.
    """
    try:
        documents = parse_yaml(text)
    except YamlParseError:
        return text
    for document in documents:
        for _, message in document.ambiguous:
            raise OverrideError(message)
    return documents[0].value if documents else None
