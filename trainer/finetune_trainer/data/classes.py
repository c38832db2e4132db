"""Classes mean the same in every data set of a run: files number or write them each in a way of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.tables import as_number


def same_classes(dataset: Dataset, train: Dataset) -> Dataset:
    """The data set with its classes as in the training set: of the same type, and the same names with the same numbers.

    Names that the training set does not know come after.
    """
    dataset = _of_one_type(dataset, train)
    differing = {
        role: names for role, names in dataset.classes.items() if role in train.classes and names != train.classes[role]
    }
    for role, names in differing.items():
        merged = tuple(dict.fromkeys([*train.classes[role], *names]))
        dataset = _renumbered(dataset, role, {old: merged.index(name) for old, name in enumerate(names)}, merged)
    return dataset


def _of_one_type(dataset: Dataset, train: Dataset) -> Dataset:
    """What a CSV means with `1`, a number or text, is what the training set means with it."""
    for role in dataset.untyped & train.columns.keys():
        others = {other: decoder for other, decoder in dataset.decoders.items() if other != role}
        dataset = replace(dataset, decoders=others | ({role: as_number} if _holds_numbers(train, role) else {}))
    return dataset


def _holds_numbers(dataset: Dataset, role: str) -> bool:
    return dataset.decoders.get(role) is as_number or bool(pa.types.is_integer(dataset.columns[role].type))


def _renumbered(dataset: Dataset, role: str, numbers: Mapping[int, int], names: tuple[str, ...]) -> Dataset:
    column = dataset.columns[role]
    values = [value if value is None else numbers.get(value, value) for value in column.to_pylist()]
    renumbered = pa.chunked_array([pa.array(values, pa.int64())])
    return replace(dataset, columns={**dataset.columns, role: renumbered}, classes={**dataset.classes, role: names})
