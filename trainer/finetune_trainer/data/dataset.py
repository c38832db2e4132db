"""Rows with roles: what a task sees of a data set, whatever format it has on disk."""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from finetune_trainer.data.inside import refusal
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.hub import is_transient

Row = Mapping[str, Any]

VERIFIED_IMAGES = 10_000
"""Images of larger data sets are not all opened before the first step; a corrupt one is named when it is met."""
ROWS = 1024
"""Rows looked at together: a whole column may be larger than memory, and than what one array of text can hold."""


@dataclass(frozen=True)
class Files:
    """Where rows come from, to tell a person.

    Args:
        said: the field of the manifest that names the data set, such as `data.train.source`.
        folder: what paths of images start from.
        root: what no link may lead out of.
        where: file and line of a row, as a person would look for it.
    """

    said: str
    folder: Path
    root: Path
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
        rows: which rows of the files these are, in ascending order.
        classes: the names of numbered classes, by role.
        decoders: how a stored value is read, by role, where it is not stored as it is meant.
        untyped: roles whose values are text because their files know nothing else.
        every_image: whether all images are opened before the first step, however many.
    """

    files: Files
    columns: Mapping[str, pa.ChunkedArray]
    names: Mapping[str, str]
    rows: np.ndarray
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decoders: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    untyped: frozenset[str] = frozenset()
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
        return list(chain.from_iterable(self.parts(role)))

    def parts(self, role: str) -> Iterator[list[Any]]:
        """All values of a role, in order, some at a time; for each role the same rows together."""
        column = self.columns[role]
        for first in range(0, len(column), ROWS):
            begin, end = np.searchsorted(self.rows, (first, first + ROWS))
            if begin < end:
                part = column.slice(first, ROWS).take(pa.array(self.rows[begin:end] - first))
                yield [self._decoded(role, value) for value in part.to_pylist()]

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
        column = self.columns[role]
        if column.null_count:
            for index in np.flatnonzero(column.is_null().to_numpy()[self.rows]):
                yield Problem(int(index), role, "the value is missing")

    def text_problems(self, role: str, *, may_be_blank: bool = False) -> Iterator[Problem]:
        """Values that are no text, say nothing, or are not there."""
        for index, value in enumerate(chain.from_iterable(self.parts(role))):
            if trouble := _text_trouble(value, may_be_blank):
                yield Problem(index, role, trouble)

    def image_problems(self) -> Iterator[Problem]:
        """Images that are not there or cannot be opened, as far as opening them all is cheap, or asked for."""
        return in_order(self.missing("image"), self._unreadable_images())

    def _unreadable_images(self) -> Iterator[Problem]:
        if self.every_image or len(self) <= VERIFIED_IMAGES:
            for index in range(len(self)):
                value = self._value("image", index)
                if value is not None and (trouble := self._trouble(value, index)):
                    yield Problem(index, "image", trouble)

    # -- values

    def _value(self, role: str, index: int) -> Any:
        return self._decoded(role, self.columns[role][int(self.rows[index])].as_py())

    def _decoded(self, role: str, value: Any) -> Any:
        return self.decoders[role](value) if role in self.decoders and value is not None else value

    def _trouble(self, value: Any, index: int) -> str | None:
        try:
            self._open(value, index)
        except UnreadableImage as error:
            return str(error)
        return None

    def _image(self, value: Any, index: int) -> Image.Image:
        try:
            return self._open(value, index)
        except UnreadableImage as error:
            raise self.complain("image", index, str(error)) from error

    def _open(self, value: Any, index: int) -> Image.Image:
        try:
            return decode_image(value, self.files.folder, self.files.root)
        except (OSError, MemoryError) as error:
            raise RunError(self.describe(Problem(index, "image", f"cannot be read now: {error}"))) from error


def in_order(*kinds: Iterator[Problem]) -> Iterator[Problem]:
    """Problems of several kinds, each in order, as a person meets them who reads the files."""
    return heapq.merge(*kinds, key=attrgetter("index"))


class UnreadableImage(Exception):  # noqa: N818 - it says what is wrong with a value, and is no end of a run
    """A value that is no image, or none that can be opened."""


def decode_image(value: Any, folder: Path, root: Path) -> Image.Image:
    """An RGB image from bytes, from a path relative to `folder`, or from a struct of both as `datasets` writes it.

    Raises:
        UnreadableImage: it cannot be opened, or is not one of the data set's.
        OSError: the disk or the machine is in trouble, not the image.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise UnreadableImage(
            f"not an image that can be opened: expected bytes or a path, found {type(value).__name__}"
        )
    if isinstance(value, str) and (refused := refusal(value, folder, root)):
        raise UnreadableImage(f"not an image that can be opened: {refused}")
    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else folder / value) as image:
            return image.convert("RGB")
    except Exception as error:  # what a decoder meets in a corrupt file, it raises as it comes
        if is_transient(error) or isinstance(error, MemoryError):
            raise
        raise UnreadableImage(f"not an image that can be opened: {error}") from error


def _text_trouble(value: Any, may_be_blank: bool) -> str | None:
    if value is None:
        return "the value is missing"
    if not isinstance(value, str):
        return f"expected text, found {_short(value)} ({type(value).__name__})"
    return None if may_be_blank or value.strip() else "the text is empty"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
