"""Reads JSON: one object per line, or objects in a list or over several lines.

One parser decides what is valid: Python's, with checks for what it tolerates and what would be changed silently (two
values for a key, NaN, numbers out of range, halves of surrogate pairs). A column has the type that all of its values
have; if they have several types, or are nested, each is stored as its JSON text. So every value is the one in the file:
a text that looks like a date is text, and an object has no keys that only other rows have.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from finetune_trainer.compat.hf_datasets import Feature
from finetune_trainer.data.cache import cache_key, remember
from finetune_trainer.data.fingerprints import content_hash
from finetune_trainer.data.readers.conversion import (
    BATCH_BYTES,
    BATCH_ROWS,
    VERSION,
    Advance,
    Batch,
    FileReader,
    MalformedRow,
    UnreadableFileError,
)
from finetune_trainer.data.readers.features import JSON, TEXT, arrow_type
from finetune_trainer.data.readers.text_files import UTF8_BOM, check_is_utf8, describe_invalid_utf8

Row: TypeAlias = dict[str, Any]

SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
WHITESPACE = re.compile(r"[ \t\n\r]*")
FIRST_OBJECT_LIMIT = 16 << 20
"""Characters of the first object, if it spans several lines."""
CHUNK = 1 << 20

TYPES: Mapping[type, Feature] = {
    type(None): datasets.Value("null"),
    bool: datasets.Value("bool"),
    int: datasets.Value("int64"),
    float: datasets.Value("float64"),
    str: TEXT,
}


class ParsedRow(NamedTuple):
    """A row and where it is; a tuple, because there may be millions.

    Args:
        line: the line on which it starts.
        row: its values by column.
        position: bytes of the file up to its end, roughly.
    """

    line: int
    row: Row
    position: int


class JsonReader(FileReader):
    unit = "line"
    may_lack_columns = True  # JSON writers leave out what is null

    def column_names(self, file: Path, advance: Advance) -> list[str]:
        return list(_scan(file, advance))

    def features(self, file: Path, names: Sequence[str]) -> dict[str, Feature]:
        columns = _scan(file)
        return {name: _feature(columns[name]) for name in names if name in columns}

    def has_rows(self, file: Path) -> bool:
        return bool(_scan(file))

    def read(self, file: Path, features: Mapping[str, Feature]) -> Iterator[Batch | MalformedRow]:
        types = {name: arrow_type(feature) for name, feature in features.items()}
        as_json = {name for name, feature in features.items() if feature == JSON}
        rows: list[ParsedRow] = []
        start = 0

        def batch() -> Batch:
            columns = [
                pa.array([_stored(row.row.get(name), name in as_json) for row in rows], type)
                for name, type in types.items()
            ]
            return Batch(columns, np.array([row.line for row in rows], np.int64), rows[-1].position)

        for item in parse_rows(file):
            if isinstance(item, MalformedRow):
                yield item
                continue
            rows.append(item)
            if len(rows) == BATCH_ROWS or item.position - start > BATCH_BYTES:
                yield batch()
                start = item.position
                rows.clear()
        if rows:
            yield batch()

    def merge_features(self, first: Feature, second: Feature) -> Feature | None:
        numbers = (TYPES[int], TYPES[float])
        if JSON in (first, second) or (first in numbers and second in numbers and first != second):
            return JSON
        return super().merge_features(first, second)


def _stored(value: Any, as_json: bool) -> Any:
    return value if value is None or not as_json else json.dumps(value, ensure_ascii=False)


def _scan(file: Path, advance: Advance = lambda _: None) -> dict[str, list[str]]:
    """The columns of a file, each with the kinds of its values; remembered by the content of the file."""
    key = cache_key(VERSION, content_hash(file))
    scan: dict[str, list[str]] = remember("json-columns", key, lambda: _scan_rows(parse_rows(file), advance))
    return scan


def _scan_rows(rows: Iterable[ParsedRow | MalformedRow], advance: Advance) -> dict[str, list[str]]:
    kinds: dict[str, set[str]] = {}
    last: tuple[Any, ...] = ()
    for count, row in enumerate(rows, start=1):
        if isinstance(row, MalformedRow):
            continue
        types = (*row.row, *map(type, row.row.values()))
        if types != last or (int in types and any(map(_is_large, row.row.values()))):
            last = types
            for name, value in row.row.items():
                kinds.setdefault(name, set()).add(_kind(value))
        if count % BATCH_ROWS == 0:
            advance(row.position)
    return {name: sorted(found) for name, found in kinds.items()}


def _is_large(value: Any) -> bool:
    """Whether a value is an integer that does not fit into 64 bits."""
    return type(value) is int and value.bit_length() > 63


def _kind(value: Any) -> str:
    """Name of the type of a column with this value; "json" if only JSON text can store it."""
    kind = type(value)
    return kind.__name__ if kind in TYPES and not _is_large(value) else "json"


def _feature(kinds: Sequence[str]) -> Feature:
    by_name = {kind.__name__: feature for kind, feature in TYPES.items()}
    found = [kind for kind in kinds if kind != "NoneType"]
    if not found:
        return by_name["NoneType"]
    return by_name[found[0]] if len(found) == 1 and found[0] in by_name else JSON


# Parsing


def parse_rows(file: Path) -> Iterator[ParsedRow | MalformedRow]:
    """The rows of a file and its malformed rows, in order.

    Raises:
        UnreadableFileError: the file is not UTF-8 text, or is malformed within a list or an object over several lines,
            after which no row can be found.
    """
    check_is_utf8(file)
    return _parse_document(file) if _is_document(file) else _parse_lines(file)


class _Parser:
    """Parses values, and collects what is wrong with them: a value that can be skipped is not the end of a file."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """What is wrong with the last value."""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def parse(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value that starts at a position, and where it ends.

        Raises:
            json.JSONDecodeError: it is not valid JSON.
            ValueError: an integer has too many digits.
            RecursionError: it is nested too deeply.
        """
        if self.problems:
            self.problems = []
        value, end = self._decoder.raw_decode(text, start)
        if not isinstance(value, dict):
            self.problems.append(f"expected an object, found {str(value)[:60]!r}")
        if _has_surrogate_escape(text, start, end) and not _is_unicode(json.dumps(value, ensure_ascii=False)):
            self.problems.append("not Unicode: half of a surrogate pair")
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self.problems.append(f"not valid JSON: two values for the key {twice!r}")
        return row

    def _constant(self, name: str) -> None:
        self.problems.append(f"not valid JSON: {name} is not a number in JSON")

    def _float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self.problems.append(f"the number {text} is too large")
        return value


def _has_surrogate_escape(text: str, start: int, end: int) -> bool:
    return text.find("\\u", start, end) >= 0 and SURROGATE_ESCAPE.search(text, start, end) is not None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_lines(file: Path) -> Iterator[ParsedRow | MalformedRow]:
    parser, position = _Parser(), 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            position += len(line)
            content = line.removeprefix(UTF8_BOM) if number == 1 else line
            if content.isspace():
                continue
            parsed = _parse_line(parser, content)
            yield MalformedRow(number, parsed) if isinstance(parsed, str) else ParsedRow(number, parsed, position)


def _parse_line(parser: _Parser, line: bytes) -> Row | str:
    """The row on a line, or what is wrong with it."""
    try:
        text = line.decode().strip(" \t\r\n")
        row, end = parser.parse(text)
    except UnicodeDecodeError:
        return str(describe_invalid_utf8(line))
    except json.JSONDecodeError as error:
        return f"not valid JSON: {_describe(error)} at column {error.colno}"
    except (RecursionError, ValueError) as error:
        return f"not valid JSON: {_describe(error)}"
    if end < len(text):
        return f"not valid JSON: extra data at column {end + 1}"
    return "; ".join(parser.problems) if parser.problems else row


def _describe(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at")
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "an integer has too many digits" if "digits" in str(error) else str(error)


def _is_document(file: Path) -> bool:
    """Whether the rows of a file are in a list, or the first one spans several lines."""
    with file.open("rb") as opened:
        first = next((line for line in opened if not line.removeprefix(UTF8_BOM).isspace()), b"")
    first = first.removeprefix(UTF8_BOM).strip()
    return first.startswith(b"[") or (first.startswith(b"{") and _spans_lines(file, first))


def _spans_lines(file: Path, first: bytes) -> bool:
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        with _open_text(file) as opened:
            text = opened.read(FIRST_OBJECT_LIMIT).lstrip()
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return False
        return "\n" in text[:end]
    return False


def _open_text(file: Path) -> TextIO:
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _parse_document(file: Path) -> Iterator[ParsedRow | MalformedRow]:
    with _open_text(file) as opened:
        document = _Document(file, opened)
        if not document.take("["):
            while not document.at_end():
                yield document.parse_row()
        elif not document.take("]"):
            yield document.parse_row()
            while document.take(","):
                yield document.parse_row()
            document.expect("]", "',' or ']'")
        document.expect_end()


class _Document:
    """A file of which a part is in memory: from the value that is parsed next."""

    def __init__(self, file: Path, opened: TextIO) -> None:
        self._opened, self._parser = opened, _Parser()
        self._text, self._start, self._line = "", 0, 1
        self._is_complete, self._position = False, 0

    def parse_row(self) -> ParsedRow | MalformedRow:
        """The next value.

        Raises:
            UnreadableFileError: it is not valid JSON.
        """
        self._skip_whitespace()
        while True:
            try:
                value, end = self._parser.parse(self._text, self._start)
            except (ValueError, RecursionError) as error:
                if self._is_complete or not self._may_continue(error):
                    raise self._error(error) from error
            else:
                if end < len(self._text) or self._is_complete:
                    break
            self._read(max(CHUNK, len(self._text) - self._start))
        line, content = self._line, self._text[self._start : end]
        self._move(end)
        problems = self._parser.problems or ([] if _is_unicode(content) else ["not UTF-8"])
        return MalformedRow(line, "; ".join(problems)) if problems else ParsedRow(line, value, self._position)

    def take(self, character: str) -> bool:
        """Move behind a character, if it is the next one."""
        self._skip_whitespace()
        found = self._text.startswith(character, self._start)
        if found:
            self._move(self._start + 1)
        return found

    def expect(self, character: str, expected: str) -> None:
        if not self.take(character):
            raise self._error(ValueError(f"expected {expected}"))

    def at_end(self) -> bool:
        self._skip_whitespace()
        return self._start == len(self._text)

    def expect_end(self) -> None:
        if not self.at_end():
            raise self._error(ValueError("expected the end of the file"))

    def _may_continue(self, error: Exception) -> bool:
        """Whether a value can be valid JSON, if more of the file is read."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - len("-Infinity")

    def _error(self, error: Exception) -> UnreadableFileError:
        line, problem = self._line, _describe(error)
        if isinstance(error, json.JSONDecodeError):
            line += self._text.count("\n", self._start, error.pos)
        return UnreadableFileError(f"the file is not valid JSON, so none of its rows can be used: {problem}", line)

    def _skip_whitespace(self) -> None:
        while True:
            end = WHITESPACE.match(self._text, self._start).end()  # type: ignore[union-attr]  # matches "", too
            self._move(end)
            if end < len(self._text) or self._is_complete:
                return
            self._read(CHUNK)

    def _move(self, end: int) -> None:
        self._line += self._text.count("\n", self._start, end)
        self._start = end

    def _read(self, size: int) -> None:
        more = self._opened.read(size)
        self._is_complete = len(more) < size
        self._text, self._start = self._text[self._start :] + more, 0
        self._position += len(more)
