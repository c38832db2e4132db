"""Reads Arrow files: streams, as `datasets.Dataset.save_to_disk` writes them, and IPC files (Feather)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

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
from finetune_trainer.hub import first_line

IPC_FILE_MAGIC = b"ARROW1"


class ArrowReader(FileReader):
    unit = "row"

    def column_names(self, file: Path, advance: Advance) -> list[str]:
        with _open(file) as (schema, _):
            return list(schema.names)

    def features(self, file: Path, names: Sequence[str]) -> dict[str, Feature]:
        with _open(file) as (schema, _):
            return column_features(schema, names)

    def read(self, file: Path, features: Mapping[str, Feature]) -> Iterator[Batch | MalformedRow]:
        with _open(file) as (_, batches):
            position = row = 0
            for batch in batches:
                used = batch.select(list(features))
                for part in _split(used):
                    yield Batch(plain_columns(part, features, row), None, position)
                    row += len(part)
                position += batch.nbytes

    def count_rows(self, file: Path, report: Callable[[MalformedRow], None]) -> int:
        with _open(file) as (_, batches):
            return sum(len(batch) for batch in batches)


@contextmanager
def _open(file: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Schema and batches; the file is mapped, so that unused columns are not read."""
    with pa.memory_map(str(file)) as source:
        is_ipc_file = source.read(len(IPC_FILE_MAGIC)) == IPC_FILE_MAGIC
        source.seek(0)
        try:
            if is_ipc_file:
                reader: Any = pa.ipc.open_file(source)
                yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
            else:
                reader = pa.ipc.open_stream(source)
                yield reader.schema, iter(reader)
        except pa.ArrowException as error:
            raise UnreadableFileError(f"cannot be read: {first_line(error)}") from error


def _split(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Parts of a batch, which may be a whole table: a copy of a large one would not fit into memory."""
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * len(batch) // max(batch.nbytes, 1)))
    return (batch.slice(start, rows) for start in range(0, len(batch), rows))
