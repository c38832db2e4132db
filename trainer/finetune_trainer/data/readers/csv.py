"""Reads CSV and TSV files with a header.

All cells are text, unless the dataset card declares types, and only an empty cell is missing: "NA" is text. Python's
parser in its strict mode decides what is valid. A malformed record is a malformed row, and parsing resumes at its
second line: a stray quote must not swallow the rows after it.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa

from finetune_trainer.compat.hf_datasets import Feature
from finetune_trainer.data.readers import tsv
from finetune_trainer.data.readers.conversion import (
    BATCH_BYTES,
    BATCH_ROWS,
    Advance,
    Batch,
    FileReader,
    MalformedRow,
    UnreadableFileError,
)
from finetune_trainer.data.readers.features import TEXT
from finetune_trainer.data.readers.text_files import check_is_utf8, describe_invalid_utf8, replace_invalid_utf8

MAX_RECORD = 16 << 20
"""Characters of a record. A quoted cell without an end reads this much of the file, at most."""


LOST_QUOTES_SAMPLE = 1000
"""Records whose values are compared with those of records over several lines."""


@dataclass(frozen=True)
class Dialect:
    """How cells are written.

    Args:
        delimiter: character between cells.
        quoted: whether cells may be quoted.
    """

    delimiter: str
    quoted: bool

    def parse(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """The cells of each record. Raises csv.Error."""
        if self.quoted:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)


@dataclass(frozen=True)
class Record:
    """A record that was parsed.

    Args:
        line: the line on which it starts.
        cells: their text; bytes that are not UTF-8 are surrogates.
        text: the record as it is in the file.
    """

    line: int
    cells: list[str]
    text: str


class CsvReader(FileReader):
    unit = "line"

    def column_names(self, file: Path, advance: Advance) -> list[str]:
        return list(dict.fromkeys(_read_header(file)))

    def features(self, file: Path, names: Sequence[str]) -> dict[str, Feature]:
        header = _read_header(file)
        if twice := next((name for name in names if header.count(name) > 1), None):
            raise UnreadableFileError(f"has two columns named {twice!r}")
        return {name: TEXT for name in names if name in header}

    def read(self, file: Path, features: Mapping[str, Feature]) -> Iterator[Batch | MalformedRow]:
        with _open_text(file) as opened:
            dialect = find_dialect(file)
            records = iter_records(opened, dialect)
            header = _header(next(records, None))
            check = _CellCheck([header.index(name) for name in features], dialect)
            rows: list[Record] = []
            malformed: list[MalformedRow] = []
            size = 0
            for record in records:
                if isinstance(record, MalformedRow):
                    malformed.append(record)
                    continue
                rows.append(record)
                size += len(record.text)
                if len(rows) == BATCH_ROWS or size > BATCH_BYTES:
                    yield from _batch(rows, malformed, check, opened)
                    rows, malformed, size = [], [], 0
            yield from _batch(rows, malformed, check, opened)

    def notes(self, file: Path) -> list[str]:
        dialect = find_dialect(file)
        return list(tsv.notes(file, dialect.quoted)) if dialect.delimiter == "\t" else []


def find_dialect(file: Path) -> Dialect:
    """CSV is quoted; TSV is not, unless the file was written as if it were CSV."""
    if file.suffix.lower() != ".tsv":
        return Dialect(",", quoted=True)
    return Dialect("\t", tsv.is_quoted(file, lambda: _parse_as_quoted(file)))


def _parse_as_quoted(file: Path) -> Iterator[str | None]:
    """The records of a TSV file as text, if cells may be quoted; None for a malformed one."""
    with _open_text(file) as opened:
        for record in iter_records(opened, Dialect("\t", quoted=True)):
            yield None if isinstance(record, MalformedRow) else record.text.rstrip("\r\n")


# Parsing


def iter_records(text: TextIO, dialect: Dialect) -> Iterator[Record | MalformedRow]:
    """The header and the records, and the malformed ones between them; empty lines are left out.

    Raises:
        UnreadableFileError: the header is malformed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
    lines, width, lost_quotes = _Lines(text), 0, _LostQuotes(dialect.delimiter)
    while True:
        try:
            for cells in dialect.parse(lines):
                width = width or len(cells)
                if cells:
                    _check_width(cells, width)
                    lost_quotes.check(cells, lines.record)
                    yield Record(lines.start, cells, "".join(lines.record))
                lines.accept()
        except csv.Error as error:
            problem = _describe(error)
            if not width:
                raise UnreadableFileError(f"the header is malformed: {problem}", lines.start) from error
            yield MalformedRow(lines.start, problem)
            lines.reject()
        else:
            return


def _check_width(cells: Sequence[str], width: int) -> None:
    if len(cells) != width:
        raise csv.Error(f"expected {width} cells, as in the header, found {len(cells)}")


class _LostQuotes:
    """Finds records that are valid, but are several rows between two stray quotes.

    In a record over several lines, each line has as many cells as the header, and a value in one column that other
    rows have there, e.g. a label. In a text over several lines, that is hardly possible.

    Args:
        delimiter: character between cells.
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._records = 0
        self._values: list[set[str]] = []

    def check(self, cells: Sequence[str], lines: Sequence[str]) -> None:
        """Raises csv.Error for such a record."""
        if len(lines) > 1 and self._are_rows(lines):
            raise csv.Error(f"a quoted cell spans {len(lines)} lines that are rows by themselves: a quote is missing")
        self._records += 1
        if 1 < self._records <= LOST_QUOTES_SAMPLE:
            self._values = self._values or [set() for _ in cells]
            for values, cell in zip(self._values, cells, strict=True):
                values.add(cell)

    def _are_rows(self, lines: Sequence[str]) -> bool:
        rows = [line.rstrip("\r\n").split(self._delimiter) for line in lines]
        if not self._values or any(len(row) != len(self._values) for row in rows):
            return False
        columns = zip(self._values, zip(*rows, strict=True), strict=True)
        return any("" not in column and values.issuperset(column) for values, column in columns)


def _describe(error: csv.Error) -> str:
    if str(error).endswith("expected after '\"'"):
        return "characters after a closing quote"
    return "a quoted cell has no closing quote" if str(error) == "unexpected end of data" else str(error)


class _Lines:
    """The lines of a file for a parser, which can be read again after a record turns out to be malformed.

    Args:
        text: the file.
    """

    def __init__(self, text: TextIO) -> None:
        self.start = 1
        """Number of the line on which the record starts."""
        self.record: list[str] = []
        """Its lines."""
        self._text = text
        self._size = 0
        self._again: deque[str] = deque()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self.record.append(line)
        self._size += len(line)
        if self._size > MAX_RECORD:
            raise csv.Error(f"a quoted cell has no closing quote within {MAX_RECORD >> 20} MiB")
        return line

    def accept(self) -> None:
        """The record is complete."""
        self.start += len(self.record)
        self.record.clear()
        self._size = 0

    def reject(self) -> None:
        """The record is malformed: continue after its first line."""
        self._again.extendleft(reversed(self.record[1:]))
        self.start += 1
        self.record.clear()
        self._size = 0


def _open_text(file: Path) -> TextIO:
    check_is_utf8(file)
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_header(file: Path) -> list[str]:
    with _open_text(file) as opened:
        return _header(next(iter_records(opened, find_dialect(file)), None))


def _header(record: Record | MalformedRow | None) -> list[str]:
    return [replace_invalid_utf8(name) for name in record.cells] if isinstance(record, Record) else []


# Batches


@dataclass(frozen=True)
class _CellCheck:
    """Finds what is wrong with the used cells of a row.

    Args:
        indices: where the used cells are.
        dialect: how cells are written.
    """

    indices: Sequence[int]
    dialect: Dialect

    def find_problem(self, row: Record) -> str | None:
        if '""' in row.text and not self.dialect.quoted and any(map(tsv.is_written_quoted, self._cells(row))):
            return "a cell is quoted as in CSV, but other cells of this TSV file are not, and TSV has no quoting"
        if row.text.isascii():
            return None
        cells = (cell.encode(errors="surrogateescape") for cell in self._cells(row))
        return next((problem for cell in cells if (problem := describe_invalid_utf8(cell))), None)

    def _cells(self, row: Record) -> list[str]:
        return [row.cells[index] for index in self.indices]


def _batch(
    rows: Sequence[Record], malformed: Sequence[MalformedRow], check: _CellCheck, opened: TextIO
) -> Iterator[Batch | MalformedRow]:
    """The used cells of some rows, after the malformed rows among and between them."""
    found = {row.line: problem for row in rows if (problem := check.find_problem(row))}
    yield from sorted([*malformed, *map(MalformedRow, found, found.values())], key=lambda row: row.number)
    rows = [row for row in rows if row.line not in found] if found else rows
    if rows:
        columns = [pa.array([row.cells[index] or None for row in rows], pa.string()) for index in check.indices]
        yield Batch(columns, np.array([row.line for row in rows], np.int64), opened.buffer.tell())
