"""Readers of the file formats.

`tables` reads the files of a split with the reader of their format; `conversion` says what a reader is, and keeps what
it yields in the cache; `image_folder` reads folders of images.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.readers.common import ProgressCallback, empty_error, os_errors
from finetune_trainer.data.readers.image_folder import (
    metadata_tables,
    read_image_folder,
    read_image_metadata,
)
from finetune_trainer.data.readers.tables import count_table_rows, read_table_columns, read_tables
from finetune_trainer.data.table import Table


def read_columns(data_files: DataFiles, progress: ProgressCallback | None = None) -> list[str]:
    """The names of the columns of a split, in the order of the files.

    Raises:
        UserError: a file cannot be parsed, or there are no columns.
        RunError: the disk or the machine failed; a retry can help.
    """
    with os_errors(data_files):
        if data_files.format == "images":
            return read_image_folder(data_files).columns
        if data_files.format == "metadata":
            names = read_table_columns(metadata_tables(data_files), progress)
            return [*(name for name in names if name != "file_name"), "image"]
        return read_table_columns(data_files, progress)


def read_table(
    data_files: DataFiles, bad_rows: BadRowPolicy, columns: Sequence[str], progress: ProgressCallback | None = None
) -> Table:
    """Read all rows of a split, with some of its columns. The others are not read, and may be anything.

    Args:
        data_files: the files.
        bad_rows: receives malformed rows.
        columns: names of columns, of those that `read_columns` returns.
        progress: receives how much has been read, if it takes long.

    Raises:
        UserError: a file cannot be parsed, the files have different columns or types, or there are no rows.
        RunError: the disk or the machine failed; a retry can help.
    """
    with os_errors(data_files):
        if data_files.format == "images":
            table = read_image_folder(data_files)
        elif data_files.format == "metadata":
            table = read_image_metadata(
                data_files, columns, lambda files, names: read_tables(files, bad_rows, names, progress)
            )
        else:
            table = read_tables(data_files, bad_rows, columns, progress)
    if not table.data.num_rows:
        field_path = data_files.field_path
        raise bad_rows.all_bad_error(field_path) if bad_rows.has_skipped(field_path) else empty_error(data_files)
    return table


def count_rows(data_files: DataFiles, bad_rows: BadRowPolicy) -> int:
    """The number of rows of a split; for parquet files, from their footers only.

    Raises:
        UserError, RunError: as `read_table`.
    """
    with os_errors(data_files):
        if data_files.format == "images":
            return len(data_files.files)
        tables = metadata_tables(data_files) if data_files.format == "metadata" else data_files
        return count_table_rows(tables, bad_rows)
