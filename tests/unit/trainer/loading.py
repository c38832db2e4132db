"""Loads the dataset `pvc://data/set` the way a run does."""

from pathlib import Path
from typing import Any

from finetune_api.data import Columns, Data
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import (
    BadRowPolicy,
    Dataset,
    Table,
    read_columns,
    read_table,
    resolve_columns,
    resolve_files,
)

FAIL = BadRowPolicy(skip=False, limit=0)


def data_spec(**fields: Any) -> Data:
    train = {"source": "pvc://data/set", **fields.pop("train", {})}
    return Data.model_validate({"train": train, **fields})


def load_table(claims_dir: Path, bad_rows: BadRowPolicy = FAIL, **train: Any) -> Table:
    """The table with all of its columns."""
    files = resolve_files(data_spec(train=train).train, "data.train", ClaimPaths(claims_dir))
    return read_table(files, bad_rows, read_columns(files))


def load_dataset(claims_dir: Path, *roles: str, bad_rows: BadRowPolicy = FAIL, **train: Any) -> Dataset:
    files = resolve_files(data_spec(train=train).train, "data.train", ClaimPaths(claims_dir))
    columns = resolve_columns(read_columns(files), Columns(), [roles], (), "data.train.source")
    return read_table(files, bad_rows, list(columns.values())).to_dataset(columns)
