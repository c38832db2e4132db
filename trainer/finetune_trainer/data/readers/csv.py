"""Reads CSV and TSV files with a header.

pyarrow parses them directly: only an empty cell is a missing value, whereas other readers also treat "NA" as one, and
malformed rows have numbers. All columns are text, unless the dataset card declares types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from finetune_trainer.compat.hf_datasets import cast_table
from finetune_trainer.data.bad_rows import BadRowPolicy
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.dataset import CHUNK_ROWS
from finetune_trainer.data.readers.common import compare_columns, empty_error, without_empty_files
from finetune_trainer.data.table import RowLocations, Table
from finetune_trainer.hub import first_line

BLOCK_SIZE = 64 << 20
"""Bytes parsed at once; the longest row has to fit."""


def read_csv(data_files: DataFiles, bad_rows: BadRowPolicy) -> Table:
    data_files = without_empty_files(data_files)
    tables, row_numbers = zip(*(_read_file(data_files, file, bad_rows) for file in data_files.files), strict=True)
    data, declared = _concat(data_files, tables), data_files.features
    if declared is not None:
        data = data.select([name for name in data.column_names if name in declared])
        if difference := compare_columns(data, declared, "the dataset card"):
            raise data_files.error(f"{data_files.display_path(data_files.files[0])} {difference}")
        data = cast_table(data.select(list(declared)), declared.arrow_schema)
    features = declared or datasets.Features.from_arrow_schema(data.schema)
    return Table(data_files, data, features, RowLocations(data_files, lambda: row_numbers))


def _concat(data_files: DataFiles, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all files, with the columns in the order of the first file that has rows."""
    pairs = zip(data_files.files, tables, strict=True)
    with_rows = [(data_files.display_path(file), table) for file, table in pairs if table.num_rows]
    if not with_rows:
        raise empty_error(data_files)
    reference, first = with_rows[0]
    for shown, table in with_rows:
        if difference := compare_columns(table, datasets.Features.from_arrow_schema(first.schema), reference):
            raise data_files.error(f"{shown} {difference}")
    return pa.concat_tables([table.select(first.column_names) for _, table in with_rows])


def _read_file(data_files: DataFiles, file: Path, bad_rows: BadRowPolicy) -> tuple[pa.Table, np.ndarray]:
    """The rows of a file as text, and their numbers as in a spreadsheet: the header is row 1."""
    shown = data_files.display_path(file)
    malformed: dict[int, str] = {}
    try:
        header, table = _parse(file, malformed)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise data_files.error(f"{shown} cannot be read: {first_line(error)}") from error
    if duplicates := [name for name in header if header.count(name) > 1]:
        raise data_files.error(f"{shown} has two columns named {duplicates[0]!r}")
    numbers = np.setdiff1d(np.arange(2, 2 + table.num_rows + len(malformed)), list(malformed))
    table, numbers = _decode_utf8(table, numbers, malformed)
    for number, problem in sorted(malformed.items()):
        bad_rows.report(data_files.field_path, f"{data_files.field_path}: {shown}, row {number}: {problem}")
    return table, numbers


def _parse(file: Path, malformed: dict[int, str]) -> tuple[list[str], pa.Table]:
    """Header and rows of a file, as bytes. Rows with another number of cells than the header go into `malformed`."""

    def skip_row(row: Any) -> str:
        malformed[row.number] = f"expected {row.expected_columns} cells, as in the header, found {row.actual_columns}"
        return "skip"

    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    parse_options = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip_row)
    # With threads, skipped rows have no number.
    read_options = pacsv.ReadOptions(use_threads=False, block_size=BLOCK_SIZE)
    header = pacsv.open_csv(file, read_options, parse_options).schema.names
    convert_options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.binary()), null_values=[""], strings_can_be_null=True
    )
    malformed.clear()  # opening the file parses its first block already
    return header, pacsv.read_csv(file, read_options, parse_options, convert_options)


def _decode_utf8(table: pa.Table, numbers: np.ndarray, malformed: dict[int, str]) -> tuple[pa.Table, np.ndarray]:
    """Decode cells from bytes to text. Rows that are not UTF-8 are dropped and go into `malformed`."""
    text_schema = pa.schema([(name, pa.string()) for name in table.column_names])
    try:
        return table.cast(text_schema), numbers
    except pa.ArrowException:
        batches = table.to_batches(max_chunksize=CHUNK_ROWS)
        valid = np.array([all(map(_is_utf8, row.values())) for batch in batches for row in batch.to_pylist()])
        malformed.update(dict.fromkeys(numbers[~valid].tolist(), "not UTF-8"))
        return table.filter(pa.array(valid)).cast(text_schema), numbers[valid]


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
