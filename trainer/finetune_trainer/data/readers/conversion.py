"""Converts data files to memory-mapped Arrow files in the cache: once per content, and only the columns that are used.

A reader of a format yields batches of rows and the malformed rows between them. What it yields is stored next to each
other, so that later starts of a run, and other runs on the same data, report the same malformed rows without parsing
the file again, and find the line of a row by a lookup. Memory is bounded by the size of a batch.
"""

from __future__ import annotations

import errno
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from finetune_trainer.compat.hf_datasets import Feature, cast_table
from finetune_trainer.data.cache import cache_key, cache_path, new_entry
from finetune_trainer.data.fingerprints import content_hash
from finetune_trainer.data.readers.features import arrow_type, describe_feature, merge_features
from finetune_trainer.hub import first_line, is_transient

VERSION = 1
"""To be increased when a reader changes what it yields for the same file."""

BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20
"""Rows and bytes of a batch, whichever comes first; a single row may be larger."""

NUMBERS = pa.field("", pa.int64())
NUMBERED = {b"numbered": b"true"}
"""The first column, and the metadata, of a file whose rows have line numbers."""

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a cache that is read-only: files are converted without it."""

ROWS_FILE, MALFORMED_FILE = "rows.arrow", "malformed.json"


class UnreadableFileError(Exception):
    """A file that cannot be read as a whole.

    Args:
        problem: continues a sentence that starts with the file or the line.
        line: where the problem is.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class FileChangedError(Exception):
    """A file was changed while it was read."""


@dataclass(frozen=True)
class MalformedRow:
    """A row that cannot be parsed.

    Args:
        number: its number in the file, in the reader's unit.
        problem: what is wrong with it.
    """

    number: int
    problem: str


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a file.

    Args:
        columns: values of the used columns, in their order.
        numbers: the line on which each row starts; None if rows are numbered from 0.
        position: bytes of the file that have been read, for the progress.
    """

    columns: Sequence[pa.Array]
    numbers: np.ndarray | None
    position: int


Advance: TypeAlias = Callable[[int], None]
"""Receives how many bytes of a file have been read."""


class FileReader(ABC):
    """Reads files of one format. Methods raise UnreadableFileError, OSError or pa.ArrowException."""

    unit: ClassVar[Literal["line", "row"]]
    may_lack_columns: ClassVar[bool] = False
    """Whether a column that a file does not have is empty, instead of an error."""

    @abstractmethod
    def column_names(self, file: Path, advance: Advance) -> list[str]:
        """The names of the columns, in order."""

    @abstractmethod
    def features(self, file: Path, names: Sequence[str]) -> dict[str, Feature]:
        """The types of those of the columns that the file has."""

    @abstractmethod
    def read(self, file: Path, features: Mapping[str, Feature]) -> Iterator[Batch | MalformedRow]:
        """The rows of a file, and the malformed rows between them.

        Args:
            file: the file.
            features: the columns to read, and their types.
        """

    def has_rows(self, file: Path) -> bool:
        """Whether a file has rows, perhaps malformed ones."""
        return next(self.read(file, {}), None) is not None

    def count_rows(self, file: Path, report: Callable[[MalformedRow], None]) -> int:
        """The number of rows, without the malformed ones that are reported."""
        count = 0
        for item in self.read(file, {}):
            if isinstance(item, MalformedRow):
                report(item)
            elif item.numbers is not None:
                count += len(item.numbers)
        return count

    def merge_features(self, first: Feature, second: Feature) -> Feature | None:
        """A type for the values of both; None if they have none in common."""
        return merge_features(first, second)

    def options(self, file: Path) -> Any:
        """What besides the content of a file determines how it is read."""
        return file.suffix.lower()

    def notes(self, file: Path) -> list[str]:
        """How a file is read, if it could be read in several ways."""
        return []


@dataclass(frozen=True)
class ConvertedFile:
    """The rows of a file in the cache.

    Args:
        file: the file.
        key: changes with the content of the file and of its used columns.
        rows: the used columns, memory-mapped.
        numbers: the line of each row; None if rows are numbered from 0.
        malformed: the rows that could not be parsed.
    """

    file: Path
    key: str
    rows: pa.Table
    numbers: np.ndarray | None
    malformed: tuple[MalformedRow, ...]


@dataclass(frozen=True)
class Conversion:
    """The conversion of the used columns of a file.

    Args:
        reader: reader of its format.
        file: the file.
        features: the columns to read, and the types that the reader gives them.
        declared: the types that the dataset card declares for some of them.
        report: receives the malformed rows; it may raise.
        advance: receives the progress; it may raise.
    """

    reader: FileReader
    file: Path
    features: Mapping[str, Feature]
    declared: Mapping[str, Feature]
    report: Callable[[MalformedRow], None]
    advance: Advance

    def run(self) -> ConvertedFile:
        """The result of the conversion, which is done unless it is in the cache.

        Raises:
            UnreadableFileError: the file is malformed as a whole, or values do not have the declared type.
            OSError, pa.ArrowException: the file cannot be read, or the cache cannot be written.
            FileChangedError: the file was changed meanwhile.
        """
        content = content_hash(self.file)
        key = cache_key(
            VERSION,
            type(self.reader).__name__,
            self.reader.options(self.file),
            content,
            [(name, str(feature), str(self.declared.get(name))) for name, feature in self.features.items()],
        )
        if converted := self._load(cache_path("tables", key)):
            for row in converted.malformed:
                self.report(row)
            return converted
        try:
            with new_entry("tables", key) as temporary:
                self._convert(temporary, content)
            return _open(self.file, key, cache_path("tables", key))
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
        with TemporaryDirectory() as folder:  # stays mapped into memory after it is deleted
            self._convert(Path(folder), content)
            return _open(self.file, key, Path(folder))

    def _load(self, folder: Path) -> ConvertedFile | None:
        """The result in the cache; None if there is none, or if it is damaged, e.g. because the machine crashed."""
        if not folder.is_dir():
            return None
        try:
            return _open(self.file, folder.name, folder)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            if is_transient(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def _convert(self, folder: Path, content: str) -> None:
        self._write(folder)
        if content_hash(self.file) != content:
            raise FileChangedError

    def _write(self, folder: Path) -> None:
        malformed, schema = [], self._schema()
        with pa.OSFile(str(folder / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for item in self.reader.read(self.file, self.features):
                if isinstance(item, MalformedRow):
                    malformed.append((item.number, item.problem))
                    self.report(item)
                else:
                    writer.write_batch(pa.record_batch(list(self._columns(item)), schema=schema))
                    self.advance(item.position)
        (folder / MALFORMED_FILE).write_text(json.dumps(malformed))

    def _schema(self) -> pa.Schema:
        types = {**self.features, **self.declared}
        fields = [pa.field(name, arrow_type(types[name])) for name in self.features]
        return pa.schema([NUMBERS, *fields], NUMBERED) if self.reader.unit == "line" else pa.schema(fields)

    def _columns(self, batch: Batch) -> Iterator[pa.Array]:
        if self.reader.unit == "line":
            yield pa.array(batch.numbers, NUMBERS.type)
        for (name, feature), column in zip(self.features.items(), batch.columns, strict=True):
            yield _to_declared(column, name, feature, self.declared.get(name))


def _open(file: Path, key: str, folder: Path) -> ConvertedFile:
    # Buffers keep the memory mapped after the file is closed: a dataset may have more files than a process may open.
    with pa.memory_map(str(folder / ROWS_FILE)) as source:
        table = pa.ipc.open_file(source).read_all()
    numbers = None
    if table.schema.metadata == NUMBERED:
        numbers, table = table.column(0).to_numpy(), table.remove_column(0).replace_schema_metadata()
    malformed = json.loads((folder / MALFORMED_FILE).read_bytes())
    return ConvertedFile(file, key, table, numbers, tuple(MalformedRow(*row) for row in malformed))


def _to_declared(column: pa.Array, name: str, feature: Feature, declared: Feature | None) -> pa.Array:
    """The values with the type that the dataset card declares for their column."""
    column = column.cast(arrow_type(feature)) if column.type != arrow_type(feature) else column
    if declared is None or declared == feature:
        return column
    try:
        return _cast(column, datasets.Features({"value": declared}).arrow_schema)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise UnreadableFileError(
            f"has type {describe_feature(feature)} in column {name!r}, but the dataset card has "
            f"{describe_feature(declared)}: {first_line(error)}"
        ) from error


def _cast(column: pa.Array, schema: pa.Schema) -> pa.Array:
    if pa.types.is_temporal(column.type) and not pa.types.is_temporal(schema.field(0).type):
        raise TypeError("the file does not say how dates and times are written")
    (chunk,) = cast_table(pa.table([column], ["value"]), schema).column(0).chunks
    return chunk
