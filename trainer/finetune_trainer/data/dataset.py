"""The rows of a dataset with the columns that a task uses, independent of the file format."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from finetune_trainer.data.cache import cache_key, remember
from finetune_trainer.data.fingerprints import content_hash, digest_column
from finetune_trainer.data.images import ImageCheck, UnreadableImageError, check_image, decode_image
from finetune_trainer.data.paths import check_path
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.formatting import pluralize

Sample = Mapping[str, Any]
"""One decoded row: values by role."""

MAX_VERIFIED_IMAGES = 10_000
"""In larger datasets, a sample of this size is checked before the first step; a corrupt image among the others is
reported when it is read."""

CHUNK_ROWS = 1024
"""Rows converted to Python at once: a whole column may exceed memory, or the 2 GiB limit of an Arrow string array."""


@dataclass(frozen=True)
class RowOrigin:
    """Where rows come from, for error messages and for relative image paths.

    Args:
        field_path: field of the manifest that names the dataset, such as `data.train.source`.
        folder: folder that image paths are relative to.
        root: folder that symbolic links must not leave.
        locate: file and line of the row with this number.
    """

    field_path: str
    folder: Path
    root: Path
    locate: Callable[[int], str]


@dataclass(frozen=True)
class RowProblem:
    """Why one value of a dataset cannot be used.

    Args:
        index: index of the row in its Dataset.
        role: role of the column.
        text: end of a message that starts with file, row and column.
    """

    index: int
    role: str
    text: str


@dataclass(frozen=True)
class Dataset:
    """A selection of rows, with one column for each role.

    Args:
        origin: where the rows come from.
        columns: encoded values by role, of all rows of the files.
        column_names: name of the column in the files, by role.
        rows: indices of the selected rows in `columns`, ascending.
        classes: names of integer classes by role, for columns of type ClassLabel.
        decoders: by role, how an encoded value is decoded; missing for values that are stored as they are.
        untyped_roles: roles whose values are strings only because the file format has no types.
        verify_all_images: decode all images before the first step, even beyond `MAX_VERIFIED_IMAGES`.
        column_keys: keys that change with the content of a column, by role; missing if unknown.
    """

    origin: RowOrigin
    columns: Mapping[str, pa.ChunkedArray]
    column_names: Mapping[str, str]
    rows: np.ndarray
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decoders: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    untyped_roles: frozenset[str] = frozenset()
    verify_all_images: bool = False
    column_keys: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        values = {role: self._value(role, index) for role in self.columns}
        if "image" in values:
            values["image"] = self._decode_image(values["image"], index)
        return values

    def values(self, role: str) -> list[Any]:
        """All values of a role, in order."""
        return list(chain.from_iterable(self.iter_chunks(role)))

    def iter_chunks(self, role: str) -> Iterator[list[Any]]:
        """All values of a role, in order, as lists of at most `CHUNK_ROWS`; every role is split at the same rows."""
        for chunk in self._iter_stored(role):
            yield [self._decode(role, value) for value in chunk.to_pylist()]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the rows: of their values by role and column, in order, and of the names of the classes.

        It depends neither on the paths and other columns of the files nor on how the rows are divided into files. Of
        images in files of their own, the content counts; in a dataset of more than `MAX_VERIFIED_IMAGES`, their paths
        and sizes.
        """
        return cache_key(len(self), *(self._fingerprint_role(role) for role in sorted(self.columns)))

    def _fingerprint_role(self, role: str) -> tuple[Any, ...]:
        files = list(self._describe_image_files()) if role == "image" else []
        names = self.classes.get(role)
        return role, self.column_names[role], self._digest_values(role), names, self._describe_decoder(role), files

    def _describe_decoder(self, role: str) -> Any:
        """Whether values are decoded; for labels, to what: it depends on the classes of this and of other datasets."""
        if role != "label" or role not in self.decoders or pa.types.is_nested(self.columns[role].type):
            return role in self.decoders
        stored = {value for chunk in self._iter_stored(role) for value in chunk.unique().to_pylist()}
        return sorted((repr(value), repr(self._decode(role, value))) for value in stored)

    def _digest_values(self, role: str) -> str:
        """Digest of the stored values of a role; remembered, because a column can have the size of the files."""

        def compute() -> str:
            chunks = chain.from_iterable(chunk.chunks for chunk in self._iter_stored(role))
            return digest_column(chunks, self.columns[role].type)

        if role not in self.column_keys:
            return compute()
        key = cache_key(self.column_keys[role], hashlib.sha256(self.rows.tobytes()).hexdigest())
        return str(remember("column-digests", key, compute))

    def _describe_image_files(self) -> Iterator[str | tuple[str, int]]:
        """Content hash, or path and size, of each image in a file of its own, as far as it can be read."""
        for value in chain.from_iterable(self.iter_chunks("image")):
            path = value.get("path") if isinstance(value, Mapping) and not value.get("bytes") else value
            if isinstance(path, str) and not check_path(path, self.origin.folder, self.origin.root):
                file = self.origin.folder / path
                with suppress(OSError):
                    yield content_hash(file) if len(self) <= MAX_VERIFIED_IMAGES else (path, file.stat().st_size)

    def _iter_stored(self, role: str) -> Iterator[pa.ChunkedArray]:
        """All values of a role as they are stored, in order."""
        if not len(self.rows):
            return
        column = self.columns[role]
        for start in range(int(self.rows[0]) // CHUNK_ROWS * CHUNK_ROWS, int(self.rows[-1]) + 1, CHUNK_ROWS):
            first, last = np.searchsorted(self.rows, (start, start + CHUNK_ROWS))
            if first < last:
                yield column.slice(start, CHUNK_ROWS).take(pa.array(self.rows[first:last] - start))

    def class_names(self, role: str) -> list[str] | None:
        """The names of the classes, for a column of type ClassLabel; else None."""
        return list(self.classes[role]) if role in self.classes else None

    def locate(self, index: int) -> str:
        """File and line of a row."""
        return self.origin.locate(int(self.rows[index]))

    def error(self, role: str, index: int, problem: str) -> UserError:
        """The error for one value."""
        return UserError(self.describe(RowProblem(index, role, problem)))

    def describe(self, problem: RowProblem) -> str:
        """A problem as a complete message."""
        column = self.column_names[problem.role]
        return f"{self.origin.field_path}: column {column!r} of {self.locate(problem.index)}: {problem.text}"

    def drop_rows(self, indices: Iterable[int]) -> Dataset:
        """The dataset without the rows at these indices."""
        return replace(self, rows=np.delete(self.rows, sorted(set(indices))))

    def slice(self, start: int, stop: int) -> Dataset:
        """The rows from `start` up to, not including, `stop`."""
        return replace(self, rows=self.rows[start:stop])

    # Validation

    def missing_values(self, role: str) -> Iterator[RowProblem]:
        """Values that are null."""
        column = self.columns[role]
        if column.null_count:
            for index in np.flatnonzero(column.is_null().take(pa.array(self.rows)).to_numpy()):
                yield RowProblem(int(index), role, "the value is missing")

    def invalid_texts(self, role: str, *, allow_blank: bool = False) -> Iterator[RowProblem]:
        """Values that are null, not a string, or blank."""
        for index, value in enumerate(chain.from_iterable(self.iter_chunks(role))):
            if problem := _check_text(value, allow_blank):
                yield RowProblem(index, role, problem)

    def images_to_check(self) -> np.ndarray:
        """Indices of the images to check before the first step, ascending: all of them, or a random sample."""
        if self.verify_all_images or len(self) <= MAX_VERIFIED_IMAGES:
            return np.arange(len(self))
        return np.sort(np.random.default_rng(0).choice(len(self), MAX_VERIFIED_IMAGES, replace=False))

    def check_image(self, index: int) -> ImageCheck:
        """Whether an image can be decoded. A missing one has no problem here; see `missing_values`.

        Raises:
            RunError: the disk or the machine failed; a retry can help.
        """
        value = self._value("image", index)
        if value is None:
            return ImageCheck()
        with self._image_errors(index):
            return check_image(value, self.origin.folder, self.origin.root)

    def describe_image_checks(self, num_checked: int, more_frames: Sequence[int]) -> Iterator[str]:
        """Messages about checked images.

        Args:
            num_checked: number of images that were checked.
            more_frames: indices of those that are animated or have several pages.
        """
        if num_checked < len(self):
            yield (
                f"{self.origin.field_path}: checked {num_checked:,} of {len(self):,} images; a corrupt one among the "
                "others ends the run when it is read (data.onBadRow: Skip checks all of them)"
            )
        if more_frames:
            images = pluralize(len(more_frames), "image")
            yield (
                f"{self.origin.field_path}: only the first frame or page is used of {images}, for example of "
                f"{self.locate(more_frames[0])}"
            )

    # Decoding

    def _value(self, role: str, index: int) -> Any:
        return self._decode(role, self.columns[role][int(self.rows[index])].as_py())

    def _decode(self, role: str, value: Any) -> Any:
        if value is None or role not in self.decoders:
            return drop_null_keys(value)
        return self.decoders[role](value)

    def _decode_image(self, value: Any, index: int) -> Image.Image:
        try:
            with self._image_errors(index):
                return decode_image(value, self.origin.folder, self.origin.root)
        except UnreadableImageError as error:
            raise self.error("image", index, str(error)) from error

    @contextmanager
    def _image_errors(self, index: int) -> Iterator[None]:
        """Report an error of the disk or the machine with the row that was read."""
        try:
            yield
        except (OSError, MemoryError) as error:
            message = self.describe(RowProblem(index, "image", f"cannot be read: {error}"))
            raise RunError(message) from error


def merge_problems(*problems: Iterator[RowProblem]) -> Iterator[RowProblem]:
    """Merge iterators of problems, each in row order, into one in row order."""
    return heapq.merge(*problems, key=attrgetter("index"))


def drop_null_keys(value: Any) -> Any:
    """A value without null keys, at any depth: an Arrow struct has the keys of all rows, null where a row has none."""
    if isinstance(value, dict):
        return {key: drop_null_keys(inner) for key, inner in value.items() if inner is not None}
    return [drop_null_keys(inner) for inner in value] if isinstance(value, list) else value


def _check_text(value: Any, allow_blank: bool) -> str | None:
    if value is None:
        return "the value is missing"
    if not isinstance(value, str):
        return f"expected text, found {_truncated_repr(value)} ({type(value).__name__})"
    return None if allow_blank or value.strip() else "the text is empty"


def _truncated_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
