"""Holds out a part of the training set for validation: a fraction of it, or one fold of a cross-validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune_api.data import Data, Fold
from finetune_trainer.data.data_files import describe_choices
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.table import Table
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import pluralize


def train_validation_split(dataset: Dataset, data: Data, table: Table) -> tuple[Dataset, Dataset | None]:
    """Hold out the rows selected by `data.validation.fraction` or `data.fold`.

    Args:
        dataset: all rows of `data.train`.
        data: `data` of the manifest.
        table: the table of these rows, with the columns that `data.fold` refers to.

    Returns:
        The training set and the held-out rows; None if nothing is held out.

    Raises:
        UserError: no rows are left to train on, or the folds cannot be formed.
    """
    if data.fold is not None:
        held_out = _fold_indices(dataset, data.fold, table)
    else:
        _, count = split_sizes(data, len(dataset))
        held_out = np.random.default_rng(data.split_seed).permutation(len(dataset))[:count]
    if not len(held_out):
        return dataset, None
    mask = np.isin(np.arange(len(dataset)), held_out)
    return replace(dataset, rows=dataset.rows[~mask]), replace(dataset, rows=dataset.rows[mask])


def split_sizes(data: Data, num_rows: int) -> tuple[int, int]:
    """Sizes of the training set and of the held-out rows.

    Approximate for folds of groups, whose sizes depend on the groups.

    Raises:
        UserError: no rows are left to train on, or there are fewer rows than folds.
    """
    if data.fold is not None:
        _check_count(data.fold, num_rows)
        held_out = num_rows // data.fold.count + (data.fold.index < num_rows % data.fold.count)
        return num_rows - held_out, held_out
    if data.validation is None or data.validation.fraction is None:
        return num_rows, 0
    held_out = max(1, round(data.validation.fraction * num_rows))
    if held_out >= num_rows:
        raise UserError(
            f"data.validation.fraction: {data.validation.fraction} of {num_rows:,} rows leaves none to train on"
        )
    return num_rows - held_out, held_out


def describe_split(data: Data, num_rows: int) -> Iterator[str]:
    """A note if a fraction is so small that it is less than half a row; at least one row is held out."""
    fraction = data.validation.fraction if data.validation else None
    if fraction is not None and not round(fraction * num_rows):
        rows = pluralize(num_rows, "row")
        yield f"data.validation.fraction: {fraction} of {rows} is less than one row; holding out 1"


def fold_columns(fold: Fold | None, available: Collection[str], field_path: str) -> list[str]:
    """The columns that the folds depend on.

    Args:
        fold: `data.fold` of the manifest.
        available: the columns of the training set.
        field_path: field of the manifest that names it.

    Raises:
        UserError: there is no such column.
    """
    columns = {"groupBy": fold.group_by, "stratifyBy": fold.stratify_by} if fold else {}
    for field, name in columns.items():
        if name is not None and name not in available:
            hint = describe_choices(name, list(available))
            raise UserError(f"data.fold.{field}: {field_path} has no column {name!r}; {hint}")
    return [name for name in columns.values() if name is not None]


def _fold_indices(dataset: Dataset, fold: Fold, table: Table) -> np.ndarray:
    """The indices of one fold. Folds with the same seed are disjoint, and together they have all rows."""
    fold_columns(fold, table.columns, dataset.origin.field_path)
    groups = _column_values(dataset, table, fold.group_by, "groupBy")
    strata = _column_values(dataset, table, fold.stratify_by, "stratifyBy")
    _check_fold(fold, len(dataset), groups, strata)
    splits = _make_splitter(fold).split(np.zeros(len(dataset)), strata, groups)
    folds: list[np.ndarray] = [held_out for _, held_out in splits]
    if not len(folds[fold.index]):  # groups of very different sizes or strata
        raise UserError(
            f"data.fold: fold {fold.index} of {fold.count} has no rows: the groups in column {fold.group_by!r} cannot "
            f"be distributed over {fold.count} folds; lower data.fold.count"
        )
    return folds[fold.index]


def _make_splitter(fold: Fold) -> Any:
    # Imported here: it takes a second, and few jobs have a fold.
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    by = (fold.group_by is not None, fold.stratify_by is not None)
    classes = {(False, False): KFold, (True, False): GroupKFold, (False, True): StratifiedKFold}
    splitter_class = classes.get(by, StratifiedGroupKFold)
    return splitter_class(fold.count, shuffle=True, random_state=fold.split_seed)


def _column_values(dataset: Dataset, table: Table, name: str | None, field: str) -> list[str] | None:
    """The values of a column for the rows of the dataset, as text: they are only compared for equality."""
    if name is None:
        return None
    values = table.data.column(name).to_pylist()
    for row in dataset.rows:
        if values[row] is None:
            location = table.row_locations.locate(int(row))
            raise UserError(f"data.fold.{field}: column {name!r} of {location}: the value is missing")
    return [repr(values[row]) for row in dataset.rows]


def _check_fold(fold: Fold, num_rows: int, groups: Sequence[str] | None, strata: Sequence[str] | None) -> None:
    """Reject folds that cannot be formed, or that would be empty."""
    _check_count(fold, num_rows)
    if groups is not None and len(set(groups)) < fold.count:
        raise UserError(
            f"data.fold.groupBy: column {fold.group_by!r} has only {len(set(groups))} groups, "
            f"fewer than data.fold.count ({fold.count})"
        )
    if strata is not None:
        value, members = min(Counter(strata).items(), key=lambda item: item[1])
        if members < fold.count:
            raise UserError(
                f"data.fold.stratifyBy: value {value} of column {fold.stratify_by!r} has only {members} rows, "
                f"fewer than data.fold.count ({fold.count})"
            )


def _check_count(fold: Fold, num_rows: int) -> None:
    if fold.count > num_rows:
        raise UserError(f"data.fold.count: {fold.count} folds, but the training set has only {num_rows:,} rows")
