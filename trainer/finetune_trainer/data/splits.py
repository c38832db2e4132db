"""Parts of the training set to validate on: a fraction, or one fold of a cross-validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from finetune_api.data import Data, Fold
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.layout import nearest
from finetune_trainer.data.tables import Table
from finetune_trainer.errors import UserError


def split(dataset: Dataset, data: Data, table: Table) -> tuple[Dataset, Dataset | None]:
    """Hold out what `validation.fraction` or `fold` says.

    Args:
        dataset: what there is to train on.
        data: says what is held out.
        table: has the columns that `fold` may name.

    Raises:
        UserError: nothing is left to train on, or the folds cannot be made.
    """
    if data.fold is not None:
        held_out = _fold(dataset, data.fold, table)
    else:
        _, count = split_sizes(data, len(dataset))
        held_out = np.random.default_rng(data.split_seed).permutation(len(dataset))[:count]
    if not len(held_out):
        return dataset, None
    mask = np.isin(np.arange(len(dataset)), held_out)
    return replace(dataset, rows=dataset.rows[~mask]), replace(dataset, rows=dataset.rows[mask])


def split_sizes(data: Data, rows: int) -> tuple[int, int]:
    """Sizes of the training and the validation set when these rows are split.

    The size of a fold of groups depends on the groups; it is about as large as any other.
    """
    if data.fold is not None:
        held_out = rows // data.fold.count + (data.fold.index < rows % data.fold.count)
        return rows - held_out, held_out
    if data.validation is None or data.validation.fraction is None:
        return rows, 0
    held_out = max(1, round(data.validation.fraction * rows))
    if held_out >= rows:
        raise UserError(
            f"data.validation.fraction of {data.validation.fraction} leaves nothing of {rows} rows to train on"
        )
    return rows - held_out, held_out


def _fold(dataset: Dataset, fold: Fold, table: Table) -> np.ndarray:
    """The rows of one fold; folds of one seed do not overlap, and together are everything."""
    groups = _column(dataset, table, fold.group_by, "groupBy")
    strata = _column(dataset, table, fold.stratify_by, "stratifyBy")
    _check(fold, len(dataset), groups, strata)
    parts = _folder(fold).split(np.zeros(len(dataset)), strata, groups)
    folds: list[np.ndarray] = [held_out for _, held_out in parts]
    return folds[fold.index]


def _folder(fold: Fold) -> Any:
    by = (fold.group_by is not None, fold.stratify_by is not None)
    kinds = {(False, False): KFold, (True, False): GroupKFold, (False, True): StratifiedKFold}
    kind = kinds.get(by, StratifiedGroupKFold)
    return kind(fold.count, shuffle=True, random_state=fold.split_seed)


def _column(dataset: Dataset, table: Table, name: str | None, field: str) -> list[str] | None:
    """The values of a column of the data set, each as text: they are only compared."""
    if name is None:
        return None
    if name not in table.columns:
        hint = nearest(name, table.columns)
        raise UserError(f"data.fold.{field}: {dataset.files.said} has no column {name!r}; {hint}")
    values = table.data.column(name).to_pylist()
    for row in dataset.rows:
        if values[row] is None:
            place = table.row_locations.where(int(row))
            raise UserError(f"data.fold.{field}: column {name!r} of {place}: the value is missing")
    return [repr(values[row]) for row in dataset.rows]


def _check(fold: Fold, rows: int, groups: Sequence[str] | None, strata: Sequence[str] | None) -> None:
    """Refuse folds that cannot be made, or of which some would be empty."""
    if fold.count > rows:
        raise UserError(f"data.fold.count is {fold.count}, but the training set has only {rows} rows")
    if groups is not None and len(set(groups)) < fold.count:
        raise UserError(
            f"data.fold.groupBy: column {fold.group_by!r} has only {len(set(groups))} groups, "
            f"fewer than the {fold.count} folds of data.fold.count"
        )
    if strata is not None:
        value, members = min(Counter(strata).items(), key=lambda item: item[1])
        if members < fold.count:
            raise UserError(
                f"data.fold.stratifyBy: {value} of column {fold.stratify_by!r} has only {members} rows, "
                f"fewer than the {fold.count} folds of data.fold.count"
            )
