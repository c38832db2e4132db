"""Opens the data set `pvc://data/set` as a run does."""

from pathlib import Path
from typing import Any

from finetune_api.data import Columns, Data
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.data import BadRows, Dataset, Table, find, name_columns, read


def spec(**fields: Any) -> Data:
    train = {"source": "pvc://data/set", **fields.pop("train", {})}
    return Data.model_validate({"train": train, **fields})


def table(folder: Path, bad_rows: BadRows | None = None, **train: Any) -> Table:
    return read(find(spec(train=train).train, "data.train", ClaimPaths(folder)), bad_rows or BadRows(False, 0))


def opened(folder: Path, *roles: str, bad_rows: BadRows | None = None, **train: Any) -> Dataset:
    found = table(folder, bad_rows, **train)
    return found.dataset(name_columns(found.columns, Columns(), [roles], (), "data.train.source"))
