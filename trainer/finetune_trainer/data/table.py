"""A split as one Arrow table, and where each row is in the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from finetune_trainer.data.cache import cache_key
from finetune_trainer.data.data_files import DataFiles
from finetune_trainer.data.dataset import Dataset, RowOrigin
from finetune_trainer.data.labels import are_integers, parse_label
from finetune_trainer.errors import UserError

TEXT_ROLES = {"text", "prompt", "completion"}

LineNumbers: TypeAlias = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class RowLocations:
    """Where the rows of a table are in its files.

    Args:
        data_files: the files.
        line_numbers: for each file, the line or row number of each of its rows.
        unit: unit of the numbers, `row` or `line`.
    """

    data_files: DataFiles
    line_numbers: Callable[[], Sequence[LineNumbers]]
    unit: str = "row"

    def locate(self, row: int) -> str:
        """File and line of a row, for an error message."""
        if self.data_files.format == "images":
            return self.data_files.display_path(self.data_files.files[row])
        numbers = self.line_numbers()
        ends = list(accumulate(map(len, numbers)))
        file = int(np.searchsorted(ends, row, side="right"))
        number = numbers[file][row - ends[file] + len(numbers[file])]
        return f"{self.data_files.display_path(self.data_files.files[file])}, {self.unit} {number}"

    def files_with_rows(self) -> list[tuple[Path, int]]:
        """Each file and the number of its rows."""
        return [(file, len(numbers)) for file, numbers in zip(self.data_files.files, self.line_numbers(), strict=True)]


@dataclass(frozen=True)
class Table:
    """The rows of a split.

    Args:
        data_files: the files.
        data: their content.
        features: types of the columns, from the files and the dataset card.
        row_locations: where the rows are in the files.
        content_key: changes with the content of the columns; empty if unknown.
    """

    data_files: DataFiles
    data: pa.Table
    features: datasets.Features
    row_locations: RowLocations
    content_key: str = ""

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
        for role in TEXT_ROLES & types.keys():
            self._check_text(role, column_names[role])
        columns = {role: self.data.column(name) for role, name in column_names.items()}
        decoders = {role: decoder for role, feature in types.items() if (decoder := _find_decoder(feature))}
        keys = {role: cache_key(self.content_key, name) for role, name in column_names.items() if self.content_key}
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
            column_keys=keys,
        )

    def _check_text(self, role: str, name: str) -> None:
        """Reject dates and times as text: the file does not say how they are written."""
        found = self.data.column(name).type
        if pa.types.is_temporal(found):
            raise UserError(
                f"data.columns.{role}: column {name!r} of {self.data_files.field_path} has type {found}; expected text"
            )


def _find_decoder(feature: Any) -> Callable[[Any], Any] | None:
    """How stored values are decoded; None if they are used as they are."""
    if isinstance(feature, datasets.Json):
        return json.loads
    if not contains_json(feature):
        return None
    features = datasets.Features({"value": feature})
    return lambda value: features.decode_example({"value": value})["value"]


def contains_json(feature: Any) -> bool:
    """Whether a column, or a part of it, is stored as JSON text."""
    if isinstance(feature, Mapping):
        return any(map(contains_json, feature.values()))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(feature, datasets.Json) or (inner is not None and contains_json(inner))
