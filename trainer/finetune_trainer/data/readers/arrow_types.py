"""Columns of files that have Arrow types: their features, and values without encodings that only save space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.compat.hf_datasets import Feature
from finetune_trainer.data.readers.conversion import UnreadableFileError

VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def column_features(schema: pa.Schema, names: Sequence[str]) -> dict[str, Feature]:
    """The features of those of the columns that the schema has, from the types or from what `datasets` wrote there.

    Raises:
        UnreadableFileError: `datasets` has no such type, or a column occurs twice.
    """
    found = [name for name in names if name in schema.names]
    if duplicate := next((name for name in found if schema.names.count(name) > 1), None):
        raise UnreadableFileError(f"has two columns named {duplicate!r}")
    fields = [pa.field(name, _plain_type(schema.field(name).type)) for name in found]
    try:
        return dict(datasets.Features.from_arrow_schema(pa.schema(fields, metadata=schema.metadata)))
    except (ValueError, TypeError, NotImplementedError) as error:
        types = ", ".join(f"{field.name!r} of type {field.type}" for field in fields)
        raise UnreadableFileError(f"has a column of a type that is not supported: {types}") from error


def plain_columns(batch: pa.RecordBatch, names: Iterable[str], first_row: int) -> list[pa.Array]:
    """The values of columns without dictionary, run-end or view encoding.

    Args:
        batch: some rows of a file.
        names: the columns.
        first_row: number of the first of these rows in the file.

    Raises:
        UnreadableFileError: a text is not UTF-8; the formats require it, but their writers do not check it.
    """
    columns = {name: _plain_array(batch.column(name)) for name in names}
    for name, column in columns.items():
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
            _check_utf8(name, column, first_row)  # nothing, if it is in a part of a nested array beyond this slice
    return list(columns.values())


def _check_utf8(name: str, column: pa.Array, first_row: int) -> None:
    for row, value in enumerate(column, start=first_row):
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UnreadableFileError(
                f"has text that is not UTF-8 in column {name!r}, row {row}: byte 0x{byte:02x}; write the file again "
                "without it"
            ) from error


def _plain_array(array: pa.Array) -> pa.Array:
    if isinstance(array.type, pa.JsonType):
        array = array.storage
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    plain = _plain_type(array.type)
    return array if plain == array.type else array.cast(plain)


def _plain_type(type: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type):
        return _plain_type(type.value_type)
    return VIEWS.get(type, type)
