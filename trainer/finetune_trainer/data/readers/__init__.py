"""Readers of the file formats. To add one: a module with a function from `DataFiles` to `Table`, and a line here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.readers.arrow import read_arrow
from finetune_trainer.data.readers.common import empty_error, os_errors
from finetune_trainer.data.readers.csv import read_csv
from finetune_trainer.data.readers.image_folder import read_image_folder, read_image_metadata
from finetune_trainer.data.readers.jsonl import read_json
from finetune_trainer.data.readers.parquet import count_parquet_rows, read_parquet
from finetune_trainer.data.table import Table

Reader = Callable[[DataFiles, BadRowPolicy], Table]
TABLE_READERS: Mapping[str, Reader] = {
    "parquet": read_parquet,
    "arrow": read_arrow,
    "json": read_json,
    "csv": read_csv,
}


def read_columns(data_files: DataFiles) -> list[str]:
    """The names of the columns of a split, in the order of the files.

    Raises:
        UserError: a file cannot be parsed, or there are no rows.
        RunError: the disk or the machine failed; a retry can help.
    """
    return list(read_table(data_files, BadRowPolicy(skip=True, limit=sys.maxsize)).data.column_names)


def read_table(data_files: DataFiles, bad_rows: BadRowPolicy, columns: Collection[str] | None = None) -> Table:
    """Read all rows of a split.

    Args:
        data_files: the files.
        bad_rows: receives malformed rows.
        columns: names of the columns to read, of those from `read_columns`; None reads all of them.

    Raises:
        UserError: a file cannot be parsed, the files have different columns, or there are no rows.
        RunError: the disk or the machine failed; a retry can help.
    """
    with os_errors(data_files):
        table = _read(data_files, bad_rows)
    if not table.data.num_rows:
        raise empty_error(data_files)
    return table if columns is None else replace(table, data=table.data.select(list(columns)))


def count_rows(data_files: DataFiles, bad_rows: BadRowPolicy) -> int:
    """The number of rows of a split; for parquet files, from their footers only.

    Raises:
        UserError, RunError: as `read_table`.
    """
    if data_files.format == "parquet":
        with os_errors(data_files):
            return count_parquet_rows(data_files)
    return len(data_files.files) if data_files.format == "images" else read_table(data_files, bad_rows).data.num_rows


def _read(data_files: DataFiles, bad_rows: BadRowPolicy) -> Table:
    if data_files.format == "images":
        return read_image_folder(data_files)
    if data_files.format == "metadata":
        return read_image_metadata(data_files, lambda tables: TABLE_READERS[tables.format](tables, bad_rows))
    return TABLE_READERS[data_files.format](data_files, bad_rows)
