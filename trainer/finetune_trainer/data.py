"""Reads data sets from folders, splits them, and serves batches in an order that depends on (seed, epoch) alone.

Because the order is a pure function, a position is just a step, and a resumed run needs no state of the loader.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader

from finetune_api.data import Columns, Data
from finetune_api.sources import locate
from finetune_trainer.errors import UserError
from finetune_trainer.places import Places
from finetune_trainer.stop import in_worker

Row = Mapping[str, Any]
Batch = dict[str, torch.Tensor]

VERIFIED_IMAGES = 10_000
"""Images of larger data sets are not all opened before the first step; a corrupt one is named when it is met."""


@dataclass(frozen=True)
class Files:
    """The files of a data set and what their footers tell: enough for a plan, without reading a row.

    Args:
        said: the field of the manifest that names the data set.
        folder: where the files are.
        counts: rows by file.
        schema: columns of the first file.
    """

    said: str
    folder: Path
    counts: Mapping[Path, int]
    schema: pa.Schema

    def __len__(self) -> int:
        return sum(self.counts.values())

    def where(self, row: int) -> str:
        """File and row, as a person would look for it."""
        for file, count in self.counts.items():
            if row < count:
                return f"{file}, row {row}"
            row -= count
        raise IndexError(row)


@dataclass(frozen=True)
class Dataset:
    """Some rows of some files.

    Args:
        files: where the rows come from.
        columns: the values, by role.
        names: what the files call each role.
        rows: which rows of the files these are.
    """

    files: Files
    columns: Mapping[str, pa.ChunkedArray]
    names: Mapping[str, str]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = int(self.rows[index])
        values = {role: column[row].as_py() for role, column in self.columns.items()}
        if "image" in values:
            values["image"] = self._image(values["image"], row)
        return values

    def values(self, role: str) -> list[Any]:
        """All values of a role, in order."""
        return list(self.columns[role].take(pa.array(self.rows)).to_pylist())

    def where(self, index: int) -> str:
        return self.files.where(int(self.rows[index]))

    def complain(self, role: str, index: int, problem: str) -> UserError:
        """An error about one value."""
        return UserError(f"{self.files.said}: column {self.names[role]!r} of {self.where(index)}: {problem}")

    def check_text(self) -> None:
        """Refuse a text column with anything but text in it."""
        column = self.columns["text"]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise self.complain(
                "text", 0, f"expected text, found {column[int(self.rows[0])].as_py()!r} ({column.type})"
            )
        self.check_present("text")

    def check_present(self, role: str) -> None:
        """Refuse a column with holes."""
        if self.columns[role].null_count:
            for index, row in enumerate(self.rows):
                if not self.columns[role][int(row)].is_valid:
                    raise self.complain(role, index, "the value is missing")

    def check_images(self) -> None:
        """Refuse images that cannot be opened, as far as opening them all is cheap."""
        self.check_present("image")
        for index in range(len(self) if len(self) <= VERIFIED_IMAGES else 0):
            row = int(self.rows[index])
            self._image(self.columns["image"][row].as_py(), row)

    def _image(self, value: Any, row: int) -> Image.Image:
        try:
            return decode_image(value, self.files.folder)
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            place = f"column {self.names['image']!r} of {self.files.where(row)}"
            raise UserError(f"{self.files.said}: {place}: not an image that can be opened: {error}") from error


def decode_image(value: Any, folder: Path) -> Image.Image:
    """An RGB image from bytes, from a path relative to `folder`, or from a struct of both as `datasets` writes it."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        value = (folder / value).read_bytes()
    if not isinstance(value, bytes):
        raise TypeError(f"expected bytes or a path, found {type(value).__name__}")
    with Image.open(io.BytesIO(value)) as image:
        return image.convert("RGB")


def find(source: str, said: str, places: Places) -> Files:
    """Look at the footers of a data set's files.

    Raises:
        UserError: there is nothing to read, or it cannot be read.
    """
    if locate(source).scheme == "hf":
        raise UserError(f"{said}: {source}: not yet supported: hf:// data sources; put the files on a claim (pvc://)")
    folder = places.existing(source, said)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.parquet"))
    if not paths:
        others = sorted({path.suffix for path in folder.rglob("*") if path.is_file()} - {""})
        found = f"; there are {', '.join(others)} files, which are not yet supported" if others else "; it is empty"
        raise UserError(f"{said}: {source}: no .parquet files in {folder}{found}")
    footers = {path: _footer(path, said) for path in paths}
    counts = {path: footer.metadata.num_rows for path, footer in footers.items()}
    if not sum(counts.values()):
        raise UserError(f"{said}: {source}: the data set is empty: no rows in {', '.join(map(str, paths[:3]))}")
    root = folder.parent if folder.is_file() else folder
    return Files(said, root, counts, footers[paths[0]].schema_arrow)


def _footer(path: Path, said: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{said}: {path} is not a parquet file that can be read: {error}") from error


def name_columns(files: Files, columns: Columns, required: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """Role to column, for the roles that a task needs and those it can use.

    Raises:
        UserError: a column is not there.
    """
    there, names = files.schema.names, {}
    for role in (*required, *optional):
        said = getattr(columns, role)
        name = said or role
        if name in there:
            names[role] = name
        elif role in required or said:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? It has" if near else "it has"
            raise UserError(f"data.columns.{role}: {files.said} has no column {name!r}; {hint} {', '.join(there)}")
    return names


def read(files: Files, names: Mapping[str, str]) -> Dataset:
    """Read the columns that are needed into memory."""
    tables = []
    for path in files.counts:
        try:
            tables.append(pq.read_table(path, columns=list(dict.fromkeys(names.values()))))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{files.said}: {path} cannot be read: {error}") from error
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"{files.said}: the files in {files.folder} do not have the same columns: {error}") from error
    columns = {role: table.column(name) for role, name in names.items()}
    return Dataset(files, columns, names, np.arange(table.num_rows))


def split_sizes(data: Data, train: int) -> tuple[int, int]:
    """Sizes of the training and the validation set when `validation.fraction` splits `train` rows."""
    if data.validation is None or data.validation.fraction is None:
        return train, 0
    held_out = max(1, round(data.validation.fraction * train))
    if held_out >= train:
        raise UserError(
            f"data.validation.fraction of {data.validation.fraction} leaves nothing of {train} rows to train on"
        )
    return train - held_out, held_out


def split(dataset: Dataset, data: Data) -> tuple[Dataset, Dataset | None]:
    """Hold out the validation set that `validation.fraction` and `splitSeed` draw."""
    _, held_out = split_sizes(data, len(dataset))
    if not held_out:
        return dataset, None
    drawn = np.random.default_rng(data.split_seed).permutation(dataset.rows)
    validation, train = np.sort(drawn[:held_out]), np.sort(drawn[held_out:])
    return replace(dataset, rows=train), replace(dataset, rows=validation)


@dataclass(frozen=True)
class TrainingOrder:
    """The micro-batches of the steps [start, stop), as lists of indices; a pure function of its fields."""

    samples: int
    batch_size: int
    micro_batch_size: int
    seed: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            wanted, batch = divmod(step, self.samples // self.batch_size)
            if wanted != epoch:
                epoch, order = wanted, np.random.default_rng([self.seed, wanted]).permutation(self.samples)
            begin = batch * self.batch_size
            for first in range(begin, begin + self.batch_size, self.micro_batch_size):
                yield order[first : first + self.micro_batch_size].tolist()


def evaluation_order(samples: int, batch_size: int, seed: int) -> list[list[int]]:
    """Batches that drop nothing, mixed once for all: a data set sorted by class would make them easy or hard."""
    order = np.random.default_rng(seed).permutation(samples)
    return [order[first : first + batch_size].tolist() for first in range(0, samples, batch_size)]


@dataclass(frozen=True)
class _Collated(torch.utils.data.Dataset[Batch | UserError]):
    """Lists of indices to batches. An error travels as a value: torch would wrap it in the worker's traceback."""

    dataset: Dataset
    collate: Callable[[Sequence[Row]], Batch]

    def __getitem__(self, indices: list[int]) -> Batch | UserError:
        try:
            return self.collate([self.dataset[index] for index in indices])
        except UserError as error:
            return error


def batches(
    dataset: Dataset, order: Iterable[list[int]], collate: Callable[[Sequence[Row]], Batch], workers: int, pin: bool
) -> Generator[Batch]:
    """Serve batches in this order; worker processes only prepare them ahead, and change nothing about them."""
    loader = DataLoader(
        _Collated(dataset, collate),
        sampler=order,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # its own, so that the run's random state does not depend on where it was resumed
        worker_init_fn=in_worker,
        multiprocessing_context="fork" if workers else None,  # the data set is shared with the workers, not copied
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "Bus error" in str(error):
            raise UserError(
                "the workers ran out of shared memory: raise resources.sharedMemory, or lower data.workers"
            ) from error
        raise


def _as_is(batch: Any) -> Any:
    return batch
