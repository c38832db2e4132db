"""A split as one Arrow table with all of its columns, and where each row is in the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.dataset import Dataset, RowOrigin
from finetune_trainer.data.labels import are_integers, parse_label

LineNumbers: TypeAlias = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class RowLocations:
    """Where the rows of a table are in its files.

    Args:
        data_files: the files.
        line_numbers: for each file, the line or row number of each of its rows; computed only for an error message.
        unit: unit of the numbers, `row` or `line`.
    """

    data_files: DataFiles
    line_numbers: Callable[[], Sequence[LineNumbers]]
    unit: str = "row"

    def locate(self, row: int) -> str:
        """File and line of a row, for an error message."""
        try:
            numbers = self.line_numbers()
        except (OSError, ValueError):  # must not hide the error that is being reported
            numbers = []
        ends = list(accumulate(map(len, numbers)))
        file = int(np.searchsorted(ends, row, side="right"))
        if file == len(numbers):  # datasets found rows that our own line counter did not
            return f"{', '.join(map(self.data_files.display_path, self.data_files.files[:3]))}, row {row}"
        number = numbers[file][row - ends[file] + len(numbers[file])]
        return f"{self.data_files.display_path(self.data_files.files[file])}, {self.unit} {number}"

    def file_of_each_row(self) -> list[Path]:
        pairs = zip(self.data_files.files, self.line_numbers(), strict=True)
        return [file for file, numbers in pairs for _ in numbers]


@dataclass(frozen=True)
class Table:
    """The rows of a split, with all columns.

    Args:
        data_files: the files.
        data: their content.
        features: types of the columns, from the files and the dataset card.
        row_locations: where the rows are in the files.
    """

    data_files: DataFiles
    data: pa.Table
    features: datasets.Features
    row_locations: RowLocations

    @property
    def columns(self) -> list[str]:
        return list(self.data.column_names)

    def to_dataset(self, column_names: Mapping[str, str], verify_all_images: bool = False) -> Dataset:
        """All rows, with the columns of these roles.

        Args:
            column_names: name of the column by role.
            verify_all_images: see `Dataset`.
        """
        types = {role: self.features[name] for role, name in column_names.items()}
        columns = {role: self.data.column(name) for role, name in column_names.items()}
        decoders = {role: _json_decoder(feature) for role, feature in types.items() if _contains_json(feature)}
        untyped = {"label"} & columns.keys() if self.data_files.format == "csv" else set()
        label_parsers = {role: parse_label for role in untyped if are_integers(columns[role])}
        files = self.data_files
        return Dataset(
            RowOrigin(files.field_path, files.folder, files.root, self.row_locations.locate),
            columns,
            column_names,
            np.arange(self.data.num_rows),
            {role: tuple(feature.names) for role, feature in types.items() if isinstance(feature, datasets.ClassLabel)},
            decoders | label_parsers,
            frozenset(untyped),
            verify_all_images,
        )


def _contains_json(feature: Any) -> bool:
    """Whether a column, or a part of it, holds values of several types, which `datasets` stores as JSON."""
    if isinstance(feature, Mapping):
        return any(map(_contains_json, feature.values()))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(feature, datasets.Json) or (inner is not None and _contains_json(inner))


def _json_decoder(feature: Any) -> Callable[[Any], Any]:
    features = datasets.Features({"value": feature})
    return lambda value: features.decode_example({"value": value})["value"]
