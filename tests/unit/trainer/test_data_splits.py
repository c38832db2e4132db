"""What is held out is a function of the seed alone; folds do not overlap, and leave nothing out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.data import Columns
from finetune_trainer.data import BadRows, Dataset, Table, name_columns, split
from finetune_trainer.errors import UserError
from unit.trainer import tiny
from unit.trainer.reading import spec, table

CLASSES = 3
BY_PATIENT, BY_LABEL = {"groupBy": "patient"}, {"stratifyBy": "label"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """60 rows of 6 patients and 3 classes, which go on side by side."""
    folder: Path = tmp_path_factory.mktemp("rows")
    found = [
        {"text": str(number), "patient": f"p{number // 10}", "label": number % CLASSES, "hole": number or None}
        for number in range(60)
    ]
    tiny.write_rows(folder / "data" / "set", found)
    return table(folder)


def dataset(rows: Table) -> Dataset:
    return rows.dataset(name_columns(rows.columns, Columns(), [["text", "label"]], (), "data.train.source"))


def held_out(rows: Table, **fold: Any) -> tuple[list[int], list[int]]:
    train, validation = split(dataset(rows), spec(fold=fold), rows)
    assert validation is not None
    return [int(it) for it in train.values("text")], [int(it) for it in validation.values("text")]


def test_a_fraction_is_the_same_every_time_and_shares_nothing(rows: Table) -> None:
    def drawn(seed: int) -> tuple[list[str], list[str]]:
        train, validation = split(dataset(rows), spec(validation={"fraction": 0.25}, splitSeed=seed), rows)
        assert validation is not None
        return train.values("text"), validation.values("text")

    train, validation = drawn(0)
    assert (len(train), len(validation)) == (45, 15)
    assert not set(train) & set(validation)
    assert drawn(0) == (train, validation) != drawn(1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(2, 6),
    seed=st.integers(0, 2**31 - 1),
    by=st.sampled_from([{}, {"groupBy": "patient"}, {"stratifyBy": "label"}])
    | st.just({"groupBy": "patient", "stratifyBy": "label"}),
)
def test_folds_do_not_overlap_and_are_everything(rows: Table, count: int, seed: int, by: dict[str, str]) -> None:
    folds = [held_out(rows, index=index, count=count, splitSeed=seed, **by) for index in range(count)]
    for train, validation in folds:
        assert sorted(train + validation) == list(range(60))
        assert validation
        if "groupBy" in by:
            assert not {row // 10 for row in train} & {row // 10 for row in validation}
        if by == {"stratifyBy": "label"}:
            sizes = [sum(row % CLASSES == label for row in validation) for label in range(CLASSES)]
            assert max(sizes) - min(sizes) <= 1
    assert sorted(row for _, validation in folds for row in validation) == list(range(60))


def test_the_seed_decides_the_folds(rows: Table) -> None:
    assert held_out(rows, index=0, count=5) == held_out(rows, index=0, count=5, splitSeed=0)
    assert held_out(rows, index=0, count=5) != held_out(rows, index=0, count=5, splitSeed=1)


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        (
            {"groupBy": "pateint"},
            "data.fold.groupBy: data.train.source has no column 'pateint'; did you mean",
        ),
        (
            {"stratifyBy": "klass"},
            "data.fold.stratifyBy: data.train.source has no column 'klass'; it has text",
        ),
        ({"groupBy": "hole"}, "data.fold.groupBy: column 'hole' of"),
        ({"groupBy": "patient", "count": 7}, "data.fold.groupBy: column 'patient' has only 6 groups, fewer than the 7"),
        ({"stratifyBy": "label", "count": 21}, "of column 'label' has only 20 rows, fewer than the 21 folds"),
        ({"count": 61}, "data.fold.count is 61, but the training set has only 60 rows"),
    ],
)
def test_folds_that_cannot_be_made(rows: Table, fold: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as raised:
        held_out(rows, **{"index": 0, "count": 5, **fold})
    assert words in str(raised.value)


def test_folds_after_rows_were_left_out(rows: Table) -> None:
    """Groups are those of the rows that are left."""
    bad_rows, found = BadRows(skip=True, limit=10), dataset(rows)
    kept = bad_rows.drop(found, [problem for index in range(5) for problem in [_problem(index)]])
    parts = [split(kept, spec(fold={"index": index, "count": 3, "groupBy": "patient"}), rows) for index in range(3)]
    validated = [int(text) for _, part in parts if part for text in part.values("text")]
    assert sorted(validated) == list(range(5, 60))
    for train, part in parts:
        assert part is not None
        assert not {int(it) // 10 for it in train.values("text")} & {int(it) // 10 for it in part.values("text")}


def _problem(index: int) -> Any:
    from finetune_trainer.data import Problem

    return Problem(index, "text", "bad")
