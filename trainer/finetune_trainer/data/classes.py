"""Numbered classes mean the same in every data set of a run: files number their classes each on their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from finetune_trainer.data.dataset import Dataset


def same_classes(dataset: Dataset, train: Dataset) -> Dataset:
    """The data set with its classes numbered as in the training set, by their names; unknown ones come after."""
    differing = {
        role: names for role, names in dataset.classes.items() if role in train.classes and names != train.classes[role]
    }
    for role, names in differing.items():
        merged = tuple(dict.fromkeys([*train.classes[role], *names]))
        dataset = _renumbered(dataset, role, {old: merged.index(name) for old, name in enumerate(names)}, merged)
    return dataset


def _renumbered(dataset: Dataset, role: str, numbers: Mapping[int, int], names: tuple[str, ...]) -> Dataset:
    column = dataset.columns[role]
    values = [value if value is None else numbers.get(value, value) for value in column.to_pylist()]
    renumbered = pa.chunked_array([pa.array(values, pa.int64())])
    return replace(dataset, columns={**dataset.columns, role: renumbered}, classes={**dataset.classes, role: names})
