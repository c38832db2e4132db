"""Held-out rows depend on the seed only; folds are disjoint and cover all rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.data import Columns
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import (
    BadRowPolicy,
    Dataset,
    RowProblem,
    Table,
    describe_split,
    resolve_columns,
    split_sizes,
    train_validation_split,
)
from finetune_trainer.errors import UserError
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.planning.preview import count_samples
from unit.trainer import tiny
from unit.trainer.loading import data_spec, load_table

CLASSES = 3


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """60 rows of 6 patients, with 3 classes in turn."""
    folder: Path = tmp_path_factory.mktemp("rows")
    rows = [
        {"text": str(number), "patient": f"p{number // 10}", "label": number % CLASSES, "hole": number or None}
        for number in range(60)
    ]
    tiny.write_rows(folder / "data" / "set", rows)
    return load_table(folder)


def make_dataset(table: Table) -> Dataset:
    return table.to_dataset(resolve_columns(table.columns, Columns(), [["text", "label"]], (), "data.train.source"))


def split_fold(table: Table, **fold: Any) -> tuple[list[int], list[int]]:
    train, validation = train_validation_split(make_dataset(table), data_spec(fold=fold), table)
    assert validation is not None
    return [int(text) for text in train.values("text")], [int(text) for text in validation.values("text")]


def test_fraction_is_reproducible_and_disjoint(table: Table) -> None:
    def draw(seed: int) -> tuple[list[str], list[str]]:
        train, validation = train_validation_split(
            make_dataset(table), data_spec(validation={"fraction": 0.25}, splitSeed=seed), table
        )
        assert validation is not None
        return train.values("text"), validation.values("text")

    train, validation = draw(0)
    assert (len(train), len(validation)) == (45, 15)
    assert not set(train) & set(validation)
    assert draw(0) == (train, validation) != draw(1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(2, 6),
    seed=st.integers(0, 2**31 - 1),
    by=st.sampled_from([{}, {"groupBy": "patient"}, {"stratifyBy": "label"}])
    | st.just({"groupBy": "patient", "stratifyBy": "label"}),
)
def test_folds_are_disjoint_and_cover_all_rows(table: Table, count: int, seed: int, by: dict[str, str]) -> None:
    folds = [split_fold(table, index=index, count=count, splitSeed=seed, **by) for index in range(count)]
    for train, validation in folds:
        assert sorted(train + validation) == list(range(60))
        assert validation
        if "groupBy" in by:
            assert not {row // 10 for row in train} & {row // 10 for row in validation}
        if by == {"stratifyBy": "label"}:
            sizes = [sum(row % CLASSES == label for row in validation) for label in range(CLASSES)]
            assert max(sizes) - min(sizes) <= 1
    assert sorted(row for _, validation in folds for row in validation) == list(range(60))


def test_folds_depend_on_the_seed(table: Table) -> None:
    assert split_fold(table, index=0, count=5) == split_fold(table, index=0, count=5, splitSeed=0)
    assert split_fold(table, index=0, count=5) != split_fold(table, index=0, count=5, splitSeed=1)


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (
            {"groupBy": "pateint"},
            "data.fold.groupBy: data.train.source has no column 'pateint'; available: text, patient",
        ),
        (
            {"stratifyBy": "klass"},
            "data.fold.stratifyBy: data.train.source has no column 'klass'; available: text",
        ),
        ({"groupBy": "hole"}, "data.fold.groupBy: column 'hole' of"),
        (
            {"groupBy": "patient", "count": 7},
            "data.fold.groupBy: column 'patient' has only 6 groups, fewer than data.fold.count (7)",
        ),
        ({"stratifyBy": "label", "count": 21}, "of column 'label' has only 20 rows, fewer than data.fold.count (21)"),
        ({"count": 61}, "data.fold.count: 61 folds, but the training set has only 60 rows"),
    ],
)
def test_impossible_folds_are_rejected(table: Table, fold: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        split_fold(table, **{"index": 0, "count": 5, **fold})
    assert message in str(raised.value)


def test_folds_after_bad_rows_were_dropped(table: Table) -> None:
    """Groups are those of the remaining rows."""
    bad_rows, dataset = BadRowPolicy(skip=True, limit=10), make_dataset(table)
    kept = bad_rows.drop_rows(dataset, [RowProblem(index, "text", "bad") for index in range(5)])
    specs = [data_spec(fold={"index": index, "count": 3, "groupBy": "patient"}) for index in range(3)]
    splits = [train_validation_split(kept, spec, table) for spec in specs]
    held_out = [int(text) for _, validation in splits if validation for text in validation.values("text")]
    assert sorted(held_out) == list(range(5, 60))
    for train, validation in splits:
        assert validation is not None
        in_train, in_validation = ({int(text) // 10 for text in part.values("text")} for part in (train, validation))
        assert not in_train & in_validation


def test_fold_without_rows_is_rejected(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stratified folds of groups of very different sizes may be empty."""

    class Uneven:
        def split(self, rows: np.ndarray, *args: Any) -> list[tuple[np.ndarray, np.ndarray]]:
            indices = np.arange(len(rows))
            return [(indices[:0], indices), (indices, indices[:0])]

    monkeypatch.setattr("finetune_trainer.data.splits._make_splitter", lambda fold: Uneven())
    with pytest.raises(UserError, match=r"data\.fold: fold 1 of 2 has no rows: the groups in column 'patient'"):
        split_fold(table, index=1, count=2, groupBy="patient", stratifyBy="label")


@pytest.mark.parametrize(
    ("fraction", "num_rows", "held_out"), [(0.001, 10, 1), (0.1, 10, 1), (0.99, 100, 99), (0.5, 2, 1), (0.26, 10, 3)]
)
def test_fraction_holds_out_at_least_one_row(fraction: float, num_rows: int, held_out: int) -> None:
    spec = data_spec(validation={"fraction": fraction})
    assert split_sizes(spec, num_rows) == (num_rows - held_out, held_out)
    rounded_up = list(describe_split(spec, num_rows))
    assert rounded_up == (
        ["data.validation.fraction: 0.001 of 10 rows is less than one row; holding out 1"] if fraction == 0.001 else []
    )


@pytest.mark.parametrize(("fraction", "num_rows"), [(0.5, 1), (0.99, 2), (0.001, 1), (0.999, 100)])
def test_fraction_that_leaves_no_training_rows_is_rejected(fraction: float, num_rows: int) -> None:
    with pytest.raises(UserError, match=rf"data\.validation\.fraction: {fraction} of {num_rows} rows leaves none to"):
        split_sizes(data_spec(validation={"fraction": fraction}), num_rows)


def test_sizes_of_more_folds_than_rows_are_rejected() -> None:
    with pytest.raises(UserError, match=r"data\.fold\.count: 5 folds, but the training set has only 4 rows"):
        split_sizes(data_spec(fold={"index": 0, "count": 5}), 4)


def test_steps_of_a_plan_without_the_model_are_those_of_the_folds(tmp_path: Path) -> None:
    """Groups of 50, 6 and 4 rows: a fold is not a third of the rows."""
    patients = ["a"] * 50 + ["b"] * 6 + ["c"] * 4
    rows = [{"text": "a", "label": 0, "patient": patient} for patient in patients]
    tiny.write_rows(tmp_path / "data" / "set", rows)
    sizes = [
        count_samples(
            tiny.job("bert", "set", data={"fold": {"index": index, "count": 3, "groupBy": "patient"}}),
            ClaimPaths(tmp_path),
        )
        for index in range(3)
    ]
    assert sorted(sizes) == [10, 54, 56]


def test_unknown_fold_column_is_answered_with_all_columns(claims: Path, tmp_path: Path) -> None:
    rows = [{**row, "patient": number} for number, row in enumerate(tiny.reviews(8))]
    tiny.write_rows(tmp_path / "data" / "set", rows)
    job = tiny.job("bert", "set", data={"fold": {"index": 0, "count": 2, "groupBy": "pateint"}})
    with pytest.raises(UserError, match=r"has no column 'pateint'; available: .*patient; did you mean 'patient'\?"):
        prepare(job, ClaimPaths(claims, {"data": tmp_path / "data"}))
