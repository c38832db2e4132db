"""What the readers share: empty files, differences between files, and tables built by `datasets`.

`datasets` reads parquet, JSON, Arrow and image folders into memory-mapped Arrow files in HF_HOME, and keeps them there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa

from finetune_trainer.compat.hf_datasets import DatasetGenerationError, build_table, cache_folder, cast_table
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.errors import RunError
from finetune_trainer.hub import exception_chain, first_line, is_transient

UTF8_BOM = b"\xef\xbb\xbf"


class UnreadableFilesError(Exception):
    """`datasets` cannot build a table from these files."""


@contextmanager
def os_errors(data_files: DataFiles) -> Iterator[None]:
    """Report an OSError as one of the dataset."""
    try:
        yield
    except OSError as error:
        raise data_files.error(f"cannot be read: {error}", error) from error


def empty_error(data_files: DataFiles) -> RunError:
    files = ", ".join(map(data_files.display_path, data_files.files[:3]))
    return data_files.error(f"the dataset is empty: no rows in {files}")


def without_empty_files(data_files: DataFiles) -> DataFiles:
    """The files that are not blank: readers fail on blank ones, but empty shards of a dataset are common.

    Raises:
        UserError: all of them are blank.
    """
    if files := tuple(file for file in data_files.files if not _is_blank(file)):
        return replace(data_files, files=files)
    raise empty_error(data_files)


def build(data_files: DataFiles, copies: Sequence[Path] = ()) -> tuple[pa.Table, datasets.Features]:
    """The table that `datasets` builds from the files, or from cleaned copies of them.

    Raises:
        UserError: a file is malformed, or has other columns than the rest.
        RunError: the disk or the machine failed; a retry can help.
    """
    try:
        return try_build(data_files, copies)
    except UnreadableFilesError as error:
        raise find_malformed_file(data_files, error, copies) from error


def try_build(data_files: DataFiles, copies: Sequence[Path] = ()) -> tuple[pa.Table, datasets.Features]:
    """As `build`, without a search for the malformed file.

    Raises:
        UnreadableFilesError: at least one file is malformed, or has other columns than the rest.
        RunError: the disk or the machine failed; a retry can help.
    """
    files = copies or data_files.files
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it raises what it logs
    key = fingerprint(files)
    try:
        return build_table(data_files.format, files, data_files.split, data_files.features, key)
    except Exception as error:  # builders raise many types for malformed files
        if is_transient(error) or isinstance(error, OSError):
            os_causes = [cause for cause in exception_chain(error) if isinstance(cause, OSError)]
            cause = first_line([error, *os_causes][-1])
            raise data_files.error(f"cannot be read into {cache_folder()}: {cause}", error) from error
        raise UnreadableFilesError(_describe_build_error(error)) from error


def find_malformed_file(data_files: DataFiles, error: UnreadableFilesError, copies: Sequence[Path] = ()) -> RunError:
    """The error that names the file, and the column, that differs from the other files or from the dataset card."""
    expected, reference = data_files.features, "the dataset card"
    for file, copy in zip(data_files.files, copies or data_files.files, strict=True):
        shown = data_files.display_path(file)
        try:
            data, features = try_build(replace(data_files, files=(file,), features=None), [copy])
        except UnreadableFilesError as file_error:
            return data_files.error(f"{shown} {file_error}")
        if not data.num_rows:
            continue
        if expected is None:
            expected, reference = features, shown
        elif difference := compare_columns(data, expected, reference, may_lack=data_files.format == "json"):
            return data_files.error(f"{shown} {difference}")
    return data_files.error(str(error))


def compare_columns(
    data: pa.Table, expected: datasets.Features, reference: str, *, may_lack: bool = False
) -> str | None:
    """Compare the columns of a file with the expected ones.

    Args:
        data: rows of the file.
        expected: the columns it should have.
        reference: the file or card that has these columns.
        may_lack: columns may be missing.

    Returns:
        The difference, as the end of a message that starts with the file; None if the rows have the expected columns.
    """
    missing = [name for name in expected if name not in data.column_names]
    extra = [name for name in data.column_names if name not in expected]
    if extra or (missing and not may_lack):
        differences = (
            *(f"no column {name!r}" for name in missing[:1]),
            *(f"an extra column {name!r}" for name in extra[:1]),
        )
        return f"has {' and '.join(differences)}, unlike {reference}: all files of a dataset must have the same columns"
    for name in data.column_names:
        schema = datasets.Features({name: expected[name]}).arrow_schema
        try:
            cast_table(data.select([name]), schema)
        except (pa.ArrowException, ValueError, TypeError, KeyError):
            found = data.schema.field(name).type
            return f"has type {found} in column {name!r}, but {reference} has {schema.field(name).type}"
    return None


def fingerprint(files: Sequence[Path]) -> str:
    """A cache key that changes when a file changes, even if it is replaced by one with the same modification time."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)).encode())
    return digest.hexdigest()[:32]


def _is_blank(file: Path) -> bool:
    """Whether a file contains only whitespace, or an empty JSON list."""
    content = b""
    with file.open("rb") as opened:
        while len(content) <= len(UTF8_BOM + b"[]") and (chunk := opened.read(1 << 16)):
            content += b"".join(chunk.split())
    return content.removeprefix(UTF8_BOM) in (b"", b"[]")


def _describe_build_error(error: BaseException) -> str:
    """The message of the parser, not the one that `datasets` wraps it in."""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    return f"cannot be read: {first_line(cause or error)}"
