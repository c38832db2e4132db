"""Loads the dataset `pvc://data/set` the way a run does."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data import Columns, Data
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import (
    BadRowPolicy,
    Dataset,
    RowProblem,
    Table,
    merge_problems,
    read_columns,
    read_table,
    resolve_columns,
    resolve_files,
)
from finetune_trainer.errors import UserError

FAIL = BadRowPolicy(skip=False, limit=0)


def data_spec(**fields: Any) -> Data:
    train = {"source": "pvc://data/set", **fields.pop("train", {})}
    return Data.model_validate({"train": train, **fields})


def load_table(claims_dir: Path, bad_rows: BadRowPolicy = FAIL, **train: Any) -> Table:
    """The table with all of its columns."""
    files = resolve_files(data_spec(train=train).train, "data.train", ClaimPaths(claims_dir))
    return read_table(files, bad_rows, read_columns(files))


def invalid_images(data: Dataset) -> Iterator[RowProblem]:
    """Images that are null or cannot be decoded."""
    checks = ((index, data.check_image(index)) for index in range(len(data)))
    unreadable = (RowProblem(index, "image", check.problem) for index, check in checks if check.problem)
    return merge_problems(data.missing_values("image"), unreadable)


def load_dataset(claims_dir: Path, *roles: str, bad_rows: BadRowPolicy = FAIL, **train: Any) -> Dataset:
    files = resolve_files(data_spec(train=train).train, "data.train", ClaimPaths(claims_dir))
    columns = resolve_columns(read_columns(files), Columns(), [roles], (), "data.train.source")
    return read_table(files, bad_rows, list(columns.values())).to_dataset(columns)


def write_files(claims_dir: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files of the dataset; returns its folder."""
    folder = claims_dir / "data" / "set"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def skip_bad_rows(claims_dir: Path, *roles: str) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """The rows of the dataset with `onBadRow: Skip`, their locations without the folder, and the notes."""
    bad_rows = BadRowPolicy(skip=True, limit=100)
    data = load_dataset(claims_dir, *roles, bad_rows=bad_rows)
    rows = [dict(zip(roles, values, strict=True)) for values in zip(*map(data.values, roles), strict=True)]
    folder = f"{claims_dir}/data/set/"
    return rows, [data.locate(index).removeprefix(folder) for index in range(len(data))], list(bad_rows.notes())


def first_error(claims_dir: Path, *roles: str) -> str:
    """The error of the dataset with `onBadRow: Fail`, without the path of its folder."""
    with pytest.raises(UserError) as raised:
        load_dataset(claims_dir, *roles)
    return str(raised.value).replace(f"{claims_dir}/data/set/", "")
