"""Reads parquet files: only the used columns, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.compat.hf_datasets import Feature
from finetune_trainer.data.readers.arrow_types import column_features, plain_columns
from finetune_trainer.data.readers.conversion import (
    BATCH_BYTES,
    BATCH_ROWS,
    Advance,
    Batch,
    FileReader,
    MalformedRow,
    UnreadableFileError,
)
from finetune_trainer.hub import first_line, is_transient


class ParquetReader(FileReader):
    unit = "row"

    def column_names(self, file: Path, advance: Advance) -> list[str]:
        with _open(file) as parquet:
            return list(parquet.schema_arrow.names)

    def features(self, file: Path, names: Sequence[str]) -> dict[str, Feature]:
        with _open(file) as parquet:
            return column_features(parquet.schema_arrow, names)

    def read(self, file: Path, features: Mapping[str, Feature]) -> Iterator[Batch | MalformedRow]:
        size, done = file.stat().st_size, 0
        with _open(file) as parquet:
            rows = _batch_rows(parquet.metadata, features)
            for batch in parquet.iter_batches(rows, columns=list(features)):
                columns = plain_columns(batch, features, done)
                done += len(batch)
                yield Batch(columns, None, size * done // parquet.metadata.num_rows)

    def has_rows(self, file: Path) -> bool:
        with _open(file) as parquet:
            return bool(parquet.metadata.num_rows)

    def count_rows(self, file: Path, report: Callable[[MalformedRow], None]) -> int:
        with _open(file) as parquet:
            return int(parquet.metadata.num_rows)


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:  # a truncated footer is an OSError
        if is_transient(error):
            raise
        raise UnreadableFileError(f"is not a valid parquet file: {first_line(error)}") from error


def _batch_rows(metadata: pq.FileMetaData, names: Mapping[str, Feature]) -> int:
    """The number of rows whose used columns take `BATCH_BYTES`, by the statistics in the footer."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = (group.column(number) for group in groups for number in range(metadata.num_columns))
    size: int = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * int(metadata.num_rows) // max(size, 1)))
