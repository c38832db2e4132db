"""Makes labels comparable between datasets: each file may number its classes, or write its labels, differently."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.dataset import Dataset

INTEGER = "0|-?[1-9][0-9]{0,17}"
"""An integer of at most 64 bits as it is usually written: `001` is not the class `1`, but text."""


def align_labels(dataset: Dataset, train: Dataset) -> Dataset:
    """Give the classes of a dataset the types and numbers that they have in the training set.

    One of the two may number its classes and the other write their names, such as a folder of images and a table.
    Classes that the training set does not have are numbered after its own.
    """
    dataset = _align_names(_align_types(dataset, train), train)
    different = {
        role: names for role, names in dataset.classes.items() if role in train.classes and names != train.classes[role]
    }
    for role, names in different.items():
        merged = tuple(dict.fromkeys([*train.classes[role], *names]))
        new_numbers = {number: merged.index(name) for number, name in enumerate(names)}
        dataset = _renumber(dataset, role, new_numbers, merged)
    return dataset


def are_integers(labels: pa.ChunkedArray) -> bool:
    """Whether all labels of an untyped column are integers, so that the column is one of integers."""
    if not pa.types.is_string(labels.type):  # the dataset card declares another type
        return False
    return bool(pc.all(pc.match_substring_regex(labels, f"^({INTEGER})$")).as_py())


def parse_label(text: str) -> int | str:
    """The label in a cell of an untyped column of integers; text that is no integer stays text, an unknown class."""
    return int(text) if re.fullmatch(INTEGER, text) else text


def _align_types(dataset: Dataset, train: Dataset) -> Dataset:
    """Read `1` in an untyped column as an integer or as text, as in the training set."""
    for role in dataset.untyped_roles & train.columns.keys():
        others = {other: decoder for other, decoder in dataset.decoders.items() if other != role}
        dataset = replace(dataset, decoders=others | ({role: parse_label} if _has_integers(train, role) else {}))
    return dataset


def _align_names(dataset: Dataset, train: Dataset) -> Dataset:
    """Replace the names of classes by their numbers where the training set has numbers, and the other way round."""
    for role in dataset.columns.keys() & train.columns.keys():
        if role in train.classes and role not in dataset.classes and _has_text(dataset, role):
            numbers = {name: number for number, name in enumerate(train.classes[role])}
            dataset = _decode(dataset, role, numbers)
        if role in dataset.classes and role not in train.classes and _has_text(train, role):
            dataset = _decode(dataset, role, dict(enumerate(dataset.classes[role])))
            others = {other: names for other, names in dataset.classes.items() if other != role}
            dataset = replace(dataset, classes=others)
    return dataset


def _decode(dataset: Dataset, role: str, new_values: Mapping[Any, Any]) -> Dataset:
    """Replace decoded values; those without a new one stay as they are."""
    decode = dataset.decoders.get(role, _unchanged)
    return replace(dataset, decoders={**dataset.decoders, role: lambda value: new_values.get(value, decode(value))})


def _unchanged(value: Any) -> Any:
    return value


def _has_text(dataset: Dataset, role: str) -> bool:
    kind = dataset.columns[role].type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _has_integers(dataset: Dataset, role: str) -> bool:
    return dataset.decoders.get(role) is parse_label or bool(pa.types.is_integer(dataset.columns[role].type))


def _renumber(dataset: Dataset, role: str, new_numbers: Mapping[int, int], names: tuple[str, ...]) -> Dataset:
    column = dataset.columns[role]
    values = [value if value is None else new_numbers.get(value, value) for value in column.to_pylist()]
    renumbered = pa.chunked_array([pa.array(values, pa.int64())])
    return replace(
        dataset,
        columns={**dataset.columns, role: renumbered},
        classes={**dataset.classes, role: names},
        column_keys={other: key for other, key in dataset.column_keys.items() if other != role},
    )
