"""Reads YAML as kubectl does, with the place of every field, and says where another reader would see something else.

kubectl, Helm, Argo CD and Flux share one Go library, whose plain scalars are neither YAML 1.1 nor 1.2: `y` is true,
`010` is 8, `1e3` is the integer 1000. Manifests mean what that library reads; what YAML 1.2 reads otherwise has to be
quoted, so that a manifest means the same to every tool and to every person.
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

Key = str | int
Place = tuple[int, int]
"""Line and column, counted from 1."""

MAX_NODES = 200_000
"""Aliases of aliases grow without end; no manifest is larger."""


class ReadingError(ValueError):
    """Text that is not YAML, or that kubectl does not take."""

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True)
class Document:
    """One document of a file: plain data, and where each field of it stands.

    Args:
        value: what kubectl reads.
        places: the place of each field, by its keys from the top of the document.
        ambiguous: fields that other readers see otherwise, with what to do.
        top: where `value` begins within the document: an item of a List begins below its top.
    """

    value: Any
    places: dict[tuple[Key, ...], Place] = field(default_factory=dict)
    ambiguous: tuple[tuple[tuple[Key, ...], str], ...] = ()
    top: tuple[Key, ...] = ()

    def place(self, keys: tuple[Key, ...] = ()) -> Place:
        """Where a field stands, or the nearest thing around it that is there."""
        path = (*self.top, *keys)
        return next((self.places[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.places), (1, 1))

    def part(self, *keys: Key) -> Document:
        """A part of the document as a document of its own."""
        value, top = self.value, (*self.top, *keys)
        for key in keys:
            value = value[key]
        within = tuple((path[len(keys) :], what) for path, what in self.ambiguous if path[: len(keys)] == keys)
        return Document(value, self.places, within, top)


def read(text: str) -> list[Document]:
    """The documents of a file, without empty ones.

    Raises:
        ReadingError: the text is not YAML, or kubectl does not take it.
    """
    try:
        events = YAML(typ="safe", pure=True).parse(StringIO(text))
        documents = [_Reader(events).document(event) for event in events if isinstance(event, DocumentStartEvent)]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context).split("\n")[0]
        if "'\\t'" in problem:
            problem = "a tab; write spaces"
        raise ReadingError(f"not valid YAML: {problem}", (mark.line + 1, mark.column + 1) if mark else None) from None
    except (YAMLError, ValueError) as error:
        if isinstance(error, ReadingError):
            raise
        raise ReadingError(f"not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ReadingError("not a manifest: nested too deeply") from None
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


def kubectl_reads(text: str) -> object:
    """A plain scalar, as Go's YAML library reads it and JSON hands it on."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    digits = text if text.startswith(("_", ".")) else text.replace("_", "")
    for form, base in ((_OCTAL, 8), (_HEXADECIMAL, 16), (_BINARY, 2)):
        if whole := form.fullmatch(digits):
            number = int(whole[1] + whole[2], base)
            return number if -(2**63) <= number < 2**64 else text
    return _number(digits) if _FLOAT.fullmatch(digits) and math.isfinite(float(digits)) else text


def yaml_1_2_reads(text: str) -> object:
    """A plain scalar, as the core schema of YAML 1.2 reads it."""
    if text in _NULL:
        return None
    if text in _BOOLEAN_1_2:
        return _BOOLEAN_1_2[text]
    if re.fullmatch("0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    return _number(text) if _FLOAT.fullmatch(text) else text


def _number(text: str) -> float:
    """JSON has one kind of number: 1.0 is 1, and what 64 bits cannot hold is a float."""
    number = float(text)
    # Decimal takes as many digits as there are, where int stops at some thousands.
    whole = int(Decimal(text)) if _DECIMAL.fullmatch(text) else int(number) if number.is_integer() else None
    return number if whole is None or abs(whole) >= 2**63 else whole


def _ambiguity(text: str) -> str | None:
    """What to do about a plain scalar that means one thing to kubectl and another to YAML 1.2."""
    if _NOT_FINITE.fullmatch(text):
        return f"kubectl cannot read {text}: expected a finite number"
    ours, theirs = kubectl_reads(text), yaml_1_2_reads(text)
    if (ours, type(ours)) == (theirs, type(theirs)):
        return None
    plainly = "" if isinstance(ours, str) else f"write {json.dumps(ours)}, or "
    told = f"kubectl reads {clipped(text)} as {_named(ours)}, YAML 1.2 as {_named(theirs)}"
    return f"{told}; {plainly}quote it: {clipped(repr(text))}"


def clipped(text: str) -> str:
    """As much of a text as fits into a message."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _joined(text: str) -> str:
    """JSON writes what lies beyond 16 bits as two escapes; YAML's parser leaves them apart."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _named(value: object) -> str:
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    return f"the text {clipped(repr(value))}" if isinstance(value, str) else f"the number {value}"


# Documents -------------------------------------------------------------------------------------------------------


class _Reader:
    """Builds one document from the parser's events."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._places: dict[tuple[Key, ...], Place] = {}
        self._ambiguous: list[tuple[tuple[Key, ...], str]] = []
        self._anchors: dict[str, Any] = {}
        self._nodes = 0

    def document(self, start: Event) -> Document:
        first = next(self._events)
        self._places[()] = _place(first)
        return Document(self._node(first, ()), self._places, tuple(self._ambiguous))

    def _node(self, event: Any, path: tuple[Key, ...]) -> Any:
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise ReadingError(f"no anchor &{event.anchor} before this (or it holds itself)", _place(event))
            value = self._anchors[event.anchor]
            self._count(value, event)
            return value
        self._count(None, event)
        if isinstance(event, MappingStartEvent):
            value = self._mapping(path)
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = self._scalar(event, path)
        if event.ctag is not None and not isinstance(event, ScalarEvent):
            self._ambiguous.append((path, f"leave the tag {event.tag} out"))
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _scalar(self, event: Any, path: tuple[Key, ...]) -> Any:
        text = str(event.value)
        if event.ctag is not None and event.ctag.trval not in (None, "!"):
            self._ambiguous.append((path, f"not every reader knows the tag {event.tag}: write the value without it"))
            return text
        if event.style is not None:
            return _joined(text)
        if problem := _ambiguity(text):
            self._ambiguous.append((path, problem))
        return kubectl_reads(text)

    def _sequence(self, path: tuple[Key, ...]) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            here = (*path, len(items))
            self._places[here] = _place(event)
            items.append(self._node(event, here))
        return items

    def _mapping(self, path: tuple[Key, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event, path)
            here = (*path, key)
            self._places[here] = _place(event)
            if key in own:
                raise ReadingError(f"duplicate key: {key!r} is there already", _place(event))
            value = self._node(next(self._events), here)
            if key == "<<" and isinstance(event, ScalarEvent) and event.style is None:
                merged = self._merged(value, event)
            else:
                own[key] = value
        return {**merged, **own}

    def _key(self, event: Any, path: tuple[Key, ...]) -> str:
        if isinstance(event, AliasEvent) and isinstance(key := self._anchors.get(event.anchor), str):
            return key
        if not isinstance(event, ScalarEvent):
            raise ReadingError("a key has to be text", _place(event))
        text = str(event.value)
        if event.style is None and not isinstance(kubectl_reads(text), str):
            self._ambiguous.append(((*path, text), f"the key {text} is not text; quote it: {text!r}"))
        if event.anchor is not None:
            self._anchors[event.anchor] = text
        return text

    def _merged(self, value: Any, event: Event) -> dict[str, Any]:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise ReadingError("<< merges mappings only", _place(event))
        return {key: item for mapping in reversed(mappings) for key, item in mapping.items()}

    def _count(self, value: Any, event: Event) -> None:
        self._nodes += _size(value)
        if self._nodes > MAX_NODES:
            raise ReadingError("not a manifest: its aliases stand for too much", _place(event))


def _size(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_size, children))


def _place(event: Event) -> Place:
    return event.start_mark.line + 1, event.start_mark.column + 1
