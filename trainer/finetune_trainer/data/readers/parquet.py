"""Reads parquet files."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.readers.common import build, empty_error, without_empty_files
from finetune_trainer.data.table import RowLocations, Table
from finetune_trainer.hub import first_line


def read_parquet(data_files: DataFiles, _: BadRowPolicy) -> Table:
    data_files = without_empty_files(data_files)
    row_numbers = _row_numbers(data_files)
    # datasets fails on files without rows
    with_rows = [file for file, rows in zip(data_files.files, row_numbers, strict=True) if rows]
    if not with_rows:
        raise empty_error(data_files)
    data, features = build(replace(data_files, files=tuple(with_rows)))
    return Table(data_files, data, features, RowLocations(data_files, lambda: row_numbers))


def count_parquet_rows(data_files: DataFiles) -> int:
    return sum(len(rows) for rows in _row_numbers(without_empty_files(data_files)))


def _row_numbers(data_files: DataFiles) -> list[range]:
    """The numbers of the rows of each file, from its footer."""
    numbers = []
    for file in data_files.files:
        try:
            numbers.append(range(pq.ParquetFile(file).metadata.num_rows))
        except (pa.ArrowException, OSError) as error:  # a truncated footer is an OSError
            problem = f"{data_files.display_path(file)} is not a valid parquet file: {first_line(error)}"
            raise data_files.error(problem, error) from error
    return numbers
