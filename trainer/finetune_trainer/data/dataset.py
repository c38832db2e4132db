"""Rows with roles: what a task sees of a data set, whatever format it has on disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from finetune_trainer.errors import UserError

Row = Mapping[str, Any]

VERIFIED_IMAGES = 10_000
"""Images of larger data sets are not all opened before the first step; a corrupt one is named when it is met."""


@dataclass(frozen=True)
class Files:
    """Where rows come from, to tell a person.

    Args:
        said: the field of the manifest that names the data set, such as `data.train.source`.
        folder: what relative paths of images start from.
        where: file and line of a row, as a person would look for it.
    """

    said: str
    folder: Path
    where: Callable[[int], str]


@dataclass(frozen=True)
class Problem:
    """What is wrong with one value of a data set.

    Args:
        index: which row, as in `data[index]`.
        role: which column.
        text: what is wrong, as the end of a sentence that has named file, row and column.
    """

    index: int
    role: str
    text: str


@dataclass(frozen=True)
class Dataset:
    """Some rows of some files.

    Args:
        files: where the rows come from.
        columns: the values, by role.
        names: what the files call each role.
        rows: which rows of the files these are.
        classes: the names of numbered classes, by role.
        decoders: how a stored value is read, by role, where it is not stored as it is meant.
        every_image: whether all images are opened before the first step, however many.
    """

    files: Files
    columns: Mapping[str, pa.ChunkedArray]
    names: Mapping[str, str]
    rows: np.ndarray
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decoders: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    every_image: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        values = {role: self._value(role, index) for role in self.columns}
        if "image" in values:
            values["image"] = self._image(values["image"], index)
        return values

    def values(self, role: str) -> list[Any]:
        """All values of a role, in order."""
        return [self._decoded(role, value) for value in self._stored(role).to_pylist()]

    def class_names(self, role: str) -> list[str] | None:
        """The names of a column of numbered classes; None for any other."""
        return list(self.classes[role]) if role in self.classes else None

    def where(self, index: int) -> str:
        """File and line of a row."""
        return self.files.where(int(self.rows[index]))

    def complain(self, role: str, index: int, problem: str) -> UserError:
        """An error about one value."""
        return UserError(self.describe(Problem(index, role, problem)))

    def describe(self, problem: Problem) -> str:
        """A problem as a whole sentence."""
        return f"{self.files.said}: column {self.names[problem.role]!r} of {self.where(problem.index)}: {problem.text}"

    def without(self, indices: Iterable[int]) -> Dataset:
        """All rows but these."""
        return replace(self, rows=np.delete(self.rows, sorted(set(indices))))

    # -- what may be wrong

    def missing(self, role: str) -> Iterator[Problem]:
        """Values that are not there."""
        column = self._stored(role)
        if column.null_count:
            for index in np.flatnonzero(column.is_null().to_numpy()):
                yield Problem(int(index), role, "the value is missing")

    def text_problems(self, role: str) -> Iterator[Problem]:
        """Values that are no text, or not there."""
        yield from self.missing(role)
        kind = self.columns[role].type
        if role in self.decoders or not _is_text(kind):
            for index, value in enumerate(self.values(role)):
                if value is not None and not isinstance(value, str):
                    yield Problem(index, role, f"expected text, found {_short(value)} ({type(value).__name__})")

    def image_problems(self) -> Iterator[Problem]:
        """Images that are not there or cannot be opened, as far as opening them all is cheap, or asked for."""
        yield from self.missing("image")
        if self.every_image or len(self) <= VERIFIED_IMAGES:
            for index in range(len(self)):
                value = self._value("image", index)
                if value is not None and (trouble := self._trouble(value)):
                    yield Problem(index, "image", trouble)

    # -- values

    def _stored(self, role: str) -> pa.ChunkedArray:
        return self.columns[role].take(pa.array(self.rows))

    def _value(self, role: str, index: int) -> Any:
        return self._decoded(role, self.columns[role][int(self.rows[index])].as_py())

    def _decoded(self, role: str, value: Any) -> Any:
        return self.decoders[role](value) if role in self.decoders and value is not None else value

    def _trouble(self, value: Any) -> str | None:
        try:
            decode_image(value, self.files.folder)
        except UnreadableImage as error:
            return str(error)
        return None

    def _image(self, value: Any, index: int) -> Image.Image:
        try:
            return decode_image(value, self.files.folder)
        except UnreadableImage as error:
            raise self.complain("image", index, str(error)) from error


class UnreadableImage(Exception):  # noqa: N818 - it says what is wrong with a value, and is no end of a run
    """A value that is no image, or none that can be opened."""


def decode_image(value: Any, folder: Path) -> Image.Image:
    """An RGB image from bytes, from a path relative to `folder`, or from a struct of both as `datasets` writes it.

    Raises:
        UnreadableImage: it cannot be opened.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise UnreadableImage(
            f"not an image that can be opened: expected bytes or a path, found {type(value).__name__}"
        )
    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else folder / value) as image:
            return image.convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"not an image that can be opened: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
