"""Parses YAML as kubectl does, keeps field positions, and reports values that other parsers read differently.

kubectl, Helm, Argo CD and Flux share one Go library, whose plain scalars follow neither YAML 1.1 nor 1.2: `y` is true,
`010` is 8, `1e3` is the integer 1000. The value of a field is what that library reads. A scalar that YAML 1.2 reads
differently must be quoted, so that every tool reads the same value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

PathElement = str | int
"""A key of a mapping, or an index of a list."""
FieldPath = tuple[PathElement, ...]
Position = tuple[int, int]
"""Line and column, counted from 1."""

MAX_NODES = 200_000
"""Upper bound on the nodes of a document with its aliases expanded; nested aliases grow exponentially."""


class YamlParseError(ValueError):
    """The text is not YAML, or kubectl rejects it."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class YamlDocument:
    """One document of a YAML stream: plain data with the position of each field.

    Args:
        value: what kubectl reads.
        positions: position of each field, by its path from the root of the document.
        ambiguous: fields that other parsers read differently, each with a message.
        root: path of `value` within the document; not empty for an item of a List.
    """

    value: Any
    positions: dict[FieldPath, Position] = field(default_factory=dict)
    ambiguous: tuple[tuple[FieldPath, str], ...] = ()
    root: FieldPath = ()

    def position(self, path: FieldPath = ()) -> Position:
        """Position of a field, or of its nearest ancestor that exists."""
        full = (*self.root, *path)
        ancestors = (full[:end] for end in range(len(full), -1, -1))
        return next((self.positions[ancestor] for ancestor in ancestors if ancestor in self.positions), (1, 1))

    def subdocument(self, *path: PathElement) -> YamlDocument:
        """A part of the document as a document of its own."""
        value = self.value
        for element in path:
            value = value[element]
        within = tuple((inner[len(path) :], message) for inner, message in self.ambiguous if inner[: len(path)] == path)
        return YamlDocument(value, self.positions, within, (*self.root, *path))


def parse_yaml(text: str) -> list[YamlDocument]:
    """The documents of a YAML stream, without empty ones.

    Raises:
        YamlParseError: the text is not YAML, or kubectl rejects it.
    """
    try:
        events = YAML(typ="safe", pure=True).parse(StringIO(text))
        documents = [_DocumentBuilder(events).build() for event in events if isinstance(event, DocumentStartEvent)]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context).split("\n")[0]
        if "'\\t'" in problem:
            problem = "indentation contains a tab; use spaces"
        raise YamlParseError(f"not valid YAML: {problem}", (mark.line + 1, mark.column + 1) if mark else None) from None
    except (YAMLError, ValueError) as error:
        if isinstance(error, YamlParseError):
            raise
        raise YamlParseError(f"not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise YamlParseError("not a manifest: nested too deeply") from None
    return [document for document in documents if document.value is not None]


# Plain scalars ---------------------------------------------------------------------------------------------------

_NULL = ("", "~", "null", "Null", "NULL")
_BOOLEAN_1_2 = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_BOOLEAN = _BOOLEAN_1_2 | {
    word: value
    for lower, value in (("y", True), ("yes", True), ("on", True), ("n", False), ("no", False), ("off", False))
    for word in (lower, lower.capitalize(), lower.upper())
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"([-+]?)0[oO]?([0-7]+)")
_HEXADECIMAL = re.compile(r"([-+]?)0[xX]([0-9a-fA-F]+)")
_BINARY = re.compile(r"([-+]?)0[bB]([01]+)")


def parse_kubectl_scalar(text: str) -> object:
    """A plain scalar as kubectl reads it: by Go's YAML library, then as JSON."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    digits = text if text.startswith(("_", ".")) else text.replace("_", "")
    for pattern, base in ((_OCTAL, 8), (_HEXADECIMAL, 16), (_BINARY, 2)):
        if match := pattern.fullmatch(digits):
            number = int(match[1] + match[2], base)
            return number if -(2**63) <= number < 2**64 else text
    return _parse_number(digits) if _FLOAT.fullmatch(digits) and math.isfinite(float(digits)) else text


def parse_yaml_1_2_scalar(text: str) -> object:
    """A plain scalar as the core schema of YAML 1.2 reads it."""
    if text in _NULL:
        return None
    if text in _BOOLEAN_1_2:
        return _BOOLEAN_1_2[text]
    if re.fullmatch("0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    return _parse_number(text) if _FLOAT.fullmatch(text) else text


def _parse_number(text: str) -> float:
    """JSON has one number type: 1.0 is 1, and an integer beyond 64 bits is a float."""
    number = float(text)
    # Decimal accepts any number of digits; int() stops at a few thousand.
    integer = int(Decimal(text)) if _DECIMAL.fullmatch(text) else int(number) if number.is_integer() else None
    return number if integer is None or abs(integer) >= 2**63 else integer


def _ambiguity(text: str) -> str | None:
    """A message for a plain scalar that kubectl and YAML 1.2 read differently; None for any other."""
    if _NOT_FINITE.fullmatch(text):
        return f"kubectl cannot read {text}; expected a finite number"
    kubectl, yaml_1_2 = parse_kubectl_scalar(text), parse_yaml_1_2_scalar(text)
    if (kubectl, type(kubectl)) == (yaml_1_2, type(yaml_1_2)):
        return None
    literal = "" if isinstance(kubectl, str) else f"write {json.dumps(kubectl)}, or "
    readings = f"kubectl reads {truncate(text)} as {_describe(kubectl)}, YAML 1.2 as {_describe(yaml_1_2)}"
    return f"{readings}; {literal}quote it: {truncate(repr(text))}"


def truncate(text: str) -> str:
    """The text, shortened to at most 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _join_surrogates(text: str) -> str:
    """JSON escapes a character beyond 16 bits as a surrogate pair, which YAML's parser leaves in two halves."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _describe(value: object) -> str:
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    return f"the string {truncate(repr(value))}" if isinstance(value, str) else f"the number {value}"


# Documents -------------------------------------------------------------------------------------------------------


class _DocumentBuilder:
    """Builds one document from the parser's events."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._positions: dict[FieldPath, Position] = {}
        self._ambiguous: list[tuple[FieldPath, str]] = []
        self._anchors: dict[str, Any] = {}
        self._node_count = 0

    def build(self) -> YamlDocument:
        first = next(self._events)
        self._positions[()] = _position(first)
        return YamlDocument(self._node(first, ()), self._positions, tuple(self._ambiguous))

    def _node(self, event: Any, path: FieldPath) -> Any:
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise YamlParseError(f"anchor &{event.anchor} is not defined before this alias", _position(event))
            value = self._anchors[event.anchor]
            self._count_nodes(value, event)
            return value
        self._count_nodes(None, event)
        if isinstance(event, MappingStartEvent):
            value = self._mapping(path)
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = self._scalar(event, path)
        if event.ctag is not None and not isinstance(event, ScalarEvent):
            self._ambiguous.append((path, f"unexpected tag {event.tag}; remove it"))
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _scalar(self, event: Any, path: FieldPath) -> Any:
        text = str(event.value)
        if event.ctag is not None and event.ctag.trval not in (None, "!"):
            self._ambiguous.append((path, f"tag {event.tag} is not portable between YAML parsers; remove it"))
            return text
        if event.style is not None:
            return _join_surrogates(text)
        if message := _ambiguity(text):
            self._ambiguous.append((path, message))
        return parse_kubectl_scalar(text)

    def _sequence(self, path: FieldPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            item_path = (*path, len(items))
            self._positions[item_path] = _position(event)
            items.append(self._node(event, item_path))
        return items

    def _mapping(self, path: FieldPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event, path)
            value_path = (*path, key)
            self._positions[value_path] = _position(event)
            if key in own:
                raise YamlParseError(f"duplicate key {key!r}", _position(event))
            value = self._node(next(self._events), value_path)
            if key == "<<" and isinstance(event, ScalarEvent) and event.style is None:
                merged = self._merge(value, event)
            else:
                own[key] = value
        return {**merged, **own}

    def _key(self, event: Any, path: FieldPath) -> str:
        if isinstance(event, AliasEvent) and isinstance(key := self._anchors.get(event.anchor), str):
            return key
        if not isinstance(event, ScalarEvent):
            raise YamlParseError("a key must be a string", _position(event))
        text = str(event.value)
        if event.style is None and not isinstance(parse_kubectl_scalar(text), str):
            self._ambiguous.append(((*path, text), f"the key {text} is not a string; quote it: {text!r}"))
        if event.anchor is not None:
            self._anchors[event.anchor] = text
        return text

    def _merge(self, value: Any, event: Event) -> dict[str, Any]:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise YamlParseError("<< can merge mappings only", _position(event))
        return {key: item for mapping in reversed(mappings) for key, item in mapping.items()}

    def _count_nodes(self, value: Any, event: Event) -> None:
        self._node_count += _size(value)
        if self._node_count > MAX_NODES:
            raise YamlParseError("not a manifest: its aliases expand to too many nodes", _position(event))


def _size(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_size, children))


def _position(event: Event) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1
