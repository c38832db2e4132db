"""Reads the files of a split into one table: merges their columns, converts each file, and joins the rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa

from finetune_trainer.compat.hf_datasets import Feature, cache_folder
from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.cache import cache_key
from finetune_trainer.data.data_files import DataFiles, describe_choices
from finetune_trainer.data.readers.arrow import ArrowReader
from finetune_trainer.data.readers.common import ProgressCallback, empty_error, without_empty_files
from finetune_trainer.data.readers.conversion import (
    Conversion,
    ConvertedFile,
    FileChangedError,
    FileReader,
    MalformedRow,
    UnreadableFileError,
)
from finetune_trainer.data.readers.csv import CsvReader
from finetune_trainer.data.readers.features import declared_features, describe_feature
from finetune_trainer.data.readers.jsonl import JsonReader
from finetune_trainer.data.readers.parquet import ParquetReader
from finetune_trainer.data.table import RowLocations, Table
from finetune_trainer.errors import RunError
from finetune_trainer.hub import first_line, is_transient

TABLE_READERS: Mapping[str, FileReader] = {
    "parquet": ParquetReader(),
    "arrow": ArrowReader(),
    "json": JsonReader(),
    "csv": CsvReader(),
}
"""To add a format: a module with its reader, and a line here."""

PROGRESS_SECONDS = 0.3


def read_table_columns(data_files: DataFiles, progress: ProgressCallback | None) -> list[str]:
    """The names of the columns of all files, in order."""
    reader, found = TABLE_READERS[data_files.format], without_empty_files(data_files)
    advance = _Progress(found.files, progress)
    names: dict[str, None] = {}
    for file in found.files:
        with _file_errors(data_files, file):
            columns = reader.column_names(file, advance)
            if reader.has_rows(file):
                names.update(dict.fromkeys(columns))
        advance.end_file(file)
    advance.end()
    if not names:
        raise _no_columns(found)
    return list(names)


def _no_columns(data_files: DataFiles) -> RunError:
    """The error for files without columns; in JSON, their rows may all be malformed."""
    reader = TABLE_READERS[data_files.format]
    for file in data_files.files:
        with _file_errors(data_files, file):
            row = next(reader.read(file, {}), None)
        if isinstance(row, MalformedRow):
            shown = data_files.display_path(file)
            return data_files.error(f"all of its rows are bad, e.g. {shown}, {reader.unit} {row.number}: {row.problem}")
    return empty_error(data_files)


def read_tables(
    data_files: DataFiles, bad_rows: BadRowPolicy, columns: Sequence[str], progress: ProgressCallback | None
) -> Table:
    """The rows of all files, with these columns."""
    reader, found = TABLE_READERS[data_files.format], without_empty_files(data_files)
    types, found = _merge_columns(reader, found, columns)
    declared = declared_features(types, data_files.features)
    advance = _Progress(found.files, progress)
    converted = []
    for file in found.files:
        report = partial(_report, data_files, bad_rows, file)
        with _file_errors(data_files, file):
            converted.append(Conversion(reader, file, types, declared, report, advance).run())
            for note in reader.notes(file):
                bad_rows.add_note(f"{data_files.field_path}: {data_files.display_path(file)}: {note}")
        advance.end_file(file)
    advance.end()
    return _join(reader, found, converted, {**types, **declared})


def count_table_rows(data_files: DataFiles, bad_rows: BadRowPolicy) -> int:
    """The number of rows of all files."""
    reader, found = TABLE_READERS[data_files.format], without_empty_files(data_files)
    count = 0
    for file in found.files:
        with _file_errors(data_files, file):
            count += reader.count_rows(file, partial(_report, data_files, bad_rows, file))
    return count


def _report(data_files: DataFiles, bad_rows: BadRowPolicy, file: Path, row: MalformedRow) -> None:
    location = f"{data_files.display_path(file)}, {TABLE_READERS[data_files.format].unit} {row.number}"
    bad_rows.report(data_files.field_path, f"{data_files.field_path}: {location}: {row.problem}")


def _merge_columns(
    reader: FileReader, data_files: DataFiles, columns: Sequence[str]
) -> tuple[dict[str, Feature], DataFiles]:
    """The types of the columns, and the files that have them: all but those without rows.

    Raises:
        UserError: a file has no such column, or its values cannot be in one column with those of the others.
    """
    merged: dict[str, Feature] = {}
    origins: dict[str, str] = {}
    kept = []
    for file in data_files.files:
        with _file_errors(data_files, file):
            if not reader.has_rows(file):
                continue
            found = reader.features(file, columns)
            if len(found) < len(columns) and not reader.may_lack_columns:
                raise _missing_column(reader, file, next(name for name in columns if name not in found), origins)
            kept.append(file)
            for name, feature in found.items():
                known = merged.setdefault(name, feature)
                common = reader.merge_features(known, feature)
                if common is None:
                    raise _different_types(name, feature, known, origins[name])
                if name not in origins or common != known:
                    origins[name] = data_files.display_path(file)
                merged[name] = common
    if not kept:
        raise empty_error(data_files)
    types = {name: merged.get(name, datasets.Value("null")) for name in columns}
    return types, replace(data_files, files=tuple(kept))


def _missing_column(reader: FileReader, file: Path, name: str, origins: Mapping[str, str]) -> UnreadableFileError:
    available = reader.column_names(file, lambda _: None)
    hint = describe_choices(name, available)
    other = f", unlike {origins[name]}" if name in origins else ""
    return UnreadableFileError(f"has no column {name!r}{other}: all files must have the used columns; {hint}")


def _different_types(name: str, feature: Feature, known: Feature, origin: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"has type {describe_feature(feature)} in column {name!r}, but {origin} has {describe_feature(known)}: "
        "all files must have the same types in the used columns"
    )


def _join(
    reader: FileReader, data_files: DataFiles, converted: Sequence[ConvertedFile], types: Mapping[str, Feature]
) -> Table:
    data = pa.concat_tables([file.rows for file in converted])
    numbers = [range(len(file.rows)) if file.numbers is None else file.numbers for file in converted]
    locations = RowLocations(data_files, lambda: numbers, reader.unit)
    content_key = cache_key(*(file.key for file in converted))
    return Table(data_files, data, datasets.Features(types), locations, content_key=content_key)


@contextmanager
def _file_errors(data_files: DataFiles, file: Path) -> Iterator[None]:
    """Report what is wrong with a file as an error of the dataset."""
    shown = data_files.display_path(file)
    try:
        yield
    except UnreadableFileError as error:
        where = f"{shown}, line {error.line}:" if error.line else shown
        raise data_files.error(f"{where} {error}") from error
    except FileChangedError as error:
        raise RunError(f"{data_files.field_path}: {shown} was changed while it was read") from error
    except (pa.ArrowException, OSError) as error:
        into = f" into {cache_folder()}" if is_transient(error) else ""
        raise data_files.error(f"{shown} cannot be read{into}: {first_line(error)}", error) from error


class _Progress:
    """Sums up the bytes of several files, and reports them a few times per second.

    Args:
        files: the files.
        report: receives the bytes that have been read, and those of all files.
    """

    def __init__(self, files: Sequence[Path], report: ProgressCallback | None) -> None:
        self._sizes = {file: file.stat().st_size for file in files} if report else {}
        self._total = sum(self._sizes.values())
        self._report = report
        self._done = 0
        self._last = time.monotonic()
        self._is_reported = False

    def __call__(self, position: int) -> None:
        """A part of the current file has been read."""
        if self._report and time.monotonic() - self._last > PROGRESS_SECONDS:
            self._last, self._is_reported = time.monotonic(), True
            self._report(min(self._done + position, self._total - 1), self._total)

    def end_file(self, file: Path) -> None:
        """A file has been read, perhaps from the cache."""
        self._done += self._sizes.get(file, 0)
        self(0)

    def end(self) -> None:
        """All files have been read."""
        if self._report and self._is_reported:
            self._report(self._total, self._total)
