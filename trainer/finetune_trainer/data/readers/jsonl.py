"""Reads JSON: one object per line, or objects in a list or over several lines.

`datasets` parses the files, but it has no line numbers. Malformed lines are therefore found here, and are skipped by
giving it cleaned copies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import numpy as np

from finetune_trainer.compat.hf_datasets import cache_folder
from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.readers.common import (
    UTF8_BOM,
    UnreadableFilesError,
    build,
    find_malformed_file,
    fingerprint,
    try_build,
    without_empty_files,
)
from finetune_trainer.data.table import RowLocations, Table

CLEANED_FOLDER = "finetune-cleaned"
"""Folder in the cache for copies of files without their malformed lines."""

SEPARATORS = re.compile(r"[\s,\[\]]*")
"""What separates the objects of a list, or of consecutive objects."""


def read_json(data_files: DataFiles, bad_rows: BadRowPolicy) -> Table:
    data_files = without_empty_files(data_files)

    @cache
    def line_numbers() -> list[np.ndarray]:
        return list(map(_row_lines, data_files.files))

    locations = RowLocations(data_files, lambda: line_numbers(), "line")  # noqa: PLW0108 - for mypy, a cached function is not callable
    try:
        return Table(data_files, *try_build(data_files), locations)
    except UnreadableFilesError as error:
        _report_malformed_lines(data_files, error, bad_rows)
    return Table(data_files, *build(data_files, write_cleaned_copies(data_files)), locations)


def _report_malformed_lines(data_files: DataFiles, error: UnreadableFilesError, bad_rows: BadRowPolicy) -> None:
    malformed = [(file, line) for file in data_files.files for line in _malformed_lines(file)]
    if not malformed:
        raise find_malformed_file(data_files, error) from error
    for file, (number, problem) in malformed:
        location = f"{data_files.display_path(file)}, line {number}"
        bad_rows.report(data_files.field_path, f"{data_files.field_path}: {location}: {problem}")


def write_cleaned_copies(data_files: DataFiles) -> list[Path]:
    """Copies of the files without their malformed lines, in the cache."""
    folder = cache_folder() / CLEANED_FOLDER / fingerprint(data_files.files)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _write_cleaned(file, folder / f"{number}{file.suffix}") if _has_row_per_line(file) else file
        for number, file in enumerate(data_files.files)
    ]


def _write_cleaned(file: Path, copy: Path) -> Path:
    if copy.exists():
        return copy
    temporary = copy.with_name(f"{copy.name}.{uuid4().hex}")  # other processes may write the same copy
    try:
        with file.open("rb") as lines, temporary.open("wb") as kept:
            for line in lines:
                if line.strip() and _check_line(line) is None:
                    kept.write(line.rstrip(b"\r\n") + b"\n")
        return temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)


def _malformed_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and problem of each malformed line; in a file without a row per line, where parsing stops."""
    if not _has_row_per_line(file):
        try:
            _object_lines(file)
        except ValueError as error:
            yield getattr(error, "lineno", 1), f"the file is not valid JSON, so none of its rows can be used: {error}"
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and (problem := _check_line(line)):
                yield number, problem


def _check_line(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"not valid JSON: {error}"
    return None if isinstance(value, dict) else f"expected an object, found {str(value)[:60]!r}"


def _row_lines(file: Path) -> np.ndarray:
    """The number of the line on which each row starts."""
    if not _has_row_per_line(file):
        return np.array(_object_lines(file))
    with file.open("rb") as lines:
        valid = [number for number, line in enumerate(lines, start=1) if line.strip() and _check_line(line) is None]
    return np.array(valid, dtype=np.int64)


def _object_lines(file: Path) -> list[int]:
    """The number of the line on which each object starts, in a list or in consecutive objects.

    Raises:
        ValueError: the file is not valid JSON.
    """
    text, decoder = file.read_text("utf-8-sig"), json.JSONDecoder()
    numbers, position, line = [], 0, 1
    while (start := SEPARATORS.match(text, position).end()) < len(text):  # type: ignore[union-attr]  # matches "", too
        line += text.count("\n", position, start)
        numbers.append(line)
        _, position = decoder.raw_decode(text, start)
        line += text.count("\n", start, position)
    return numbers


def _has_row_per_line(file: Path) -> bool:
    """Whether each line is a row, judging by the first one."""
    with file.open("rb") as opened:
        first = next((line for line in opened if line.strip()), b"").removeprefix(UTF8_BOM).strip()
    return not first.startswith(b"[") and first != b"{"
