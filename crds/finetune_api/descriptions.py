"""Descriptions of fields for `kubectl explain`: adds defaults, and the types that a field of a union belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

Schema = dict[str, Any]


def merge_descriptions(name: str, members: dict[str, Schema]) -> str:
    """The description of a field of a union, one text after the other if members describe it differently.

    A text starts with the types it applies to, unless it applies to all: "SGD, Muon: momentum factor. Defaults to 0
    (SGD) or 0.95 (Muon)."
    """
    tags_by_text: dict[str, list[str]] = {}
    for tag, member in members.items():
        if name in member["properties"]:
            tags_by_text.setdefault(member["properties"][name]["description"], []).append(tag)
    sentences = []
    for text, tags in tags_by_text.items():
        is_general = len(tags) == len(members)
        sentences.append(text if is_general else f"{', '.join(tags)}: {_lower_first(text)}")
        sentences += _presence_sentences(name, {tag: members[tag] for tag in tags}, is_general)
    return " ".join(sentences)


def _presence_sentences(name: str, members: dict[str, Schema], is_general: bool) -> Iterator[str]:
    """Which of these members require a field, and its default in the others."""
    required = [tag for tag, member in members.items() if name in member.get("required", ())]
    if required and not is_general:
        yield f"Required{_only_for(required, members)}."
    tags_by_default: dict[str, list[str]] = {}
    for tag, member in members.items():
        if "default" in member["properties"][name]:
            tags_by_default.setdefault(format_default(member["properties"][name]["default"]), []).append(tag)
    if tags_by_default:
        yield f"Defaults to {join_or([value + _only_for(tags, members) for value, tags in tags_by_default.items()])}."


def _only_for(tags: list[str], members: Collection[str]) -> str:
    return f" ({', '.join(tags)})" if len(tags) < len(members) else ""


def first_paragraph(text: str) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join(text.partition("\n\n")[0].split())


def move_defaults(schema: Schema, *, described: bool) -> Schema:
    """Remove the defaults of a schema and of its fields; `described` adds them to the descriptions."""
    result = without(schema, "default")
    default = explicit_default(schema)
    if described and default is not None:
        result["description"] += f" Defaults to {format_default(default)}."
    if "properties" in schema:
        children = schema["properties"].items()
        result["properties"] = {name: move_defaults(child, described=described) for name, child in children}
    for key in ("items", "additionalProperties"):
        if key in schema:
            result[key] = move_defaults(schema[key], described=described)
    return result


def explicit_default(schema: Schema) -> Any:
    """The default of a field; None without one, for an empty list, and for an object of the defaults of its fields."""
    default = schema.get("default")
    if isinstance(default, dict):
        properties = schema["properties"]
        differing = {key: value for key, value in default.items() if value != properties[key].get("default")}
        return differing or None
    return None if default == [] else default


def format_default(value: Any) -> str:
    """A value as it is written in a manifest: `1e-8`, `true`, `{epochs: 1}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_default(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return str(value) or '""'


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def join_or(words: list[str]) -> str:
    """`A`, `A or B`, `A, B or C`."""
    *head, last = words
    return f"{', '.join(head)} or {last}" if head else last


def without(schema: Schema, *keys: str) -> Schema:
    """A copy without these keys."""
    return {key: value for key, value in schema.items() if key not in keys}
