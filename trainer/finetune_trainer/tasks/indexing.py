"""Builds the index of a dataset: in parallel, with progress, and only once for the same content.

The index is kept in the cache folder of the Hugging Face libraries (`HF_HOME`; in a cluster that is
`runtime.cacheClaim`), so that retries and all trials of a sweep share it. Its key is a hash of everything that it
depends on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TypeVar

from finetune_trainer.compat.hf_datasets import cache_folder
from finetune_trainer.data import Dataset, RowProblem, map_in_workers, merge_problems
from finetune_trainer.data.images import ImageCheck
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.index import ExampleIndex, load_index, save_index

T = TypeVar("T")

INDEX_FOLDER = "finetune-index"
"""Folder in the cache with one file per index."""

INDEX_VERSION = 1
"""Part of the key; increased when the content of an index changes for the same inputs."""

CHUNK_BYTES, MAX_CHUNK_ROWS = 1 << 19, 4096
"""Size of the parts that workers process: less than a second of work, so that a stop request is noticed in time."""

CHUNK_IMAGES = 32
"""Images that a worker checks at once; a photo takes up to 50 ms."""

PROGRESS_SECONDS = 0.2
"""Time between reports of progress."""

OnProgress = Callable[[str, int, int], None]
"""Receives activity, rows done and rows in total. It may raise `Interrupted`."""


def ignore_progress(activity: str, done: int, total: int) -> None:
    """An `OnProgress` that does nothing."""


@dataclass(frozen=True)
class IndexBuilder:
    """Builds the index of each dataset of a run.

    Args:
        task: the task.
        processors: the model's processors.
        num_workers: number of worker processes; 0 for none.
        fail_fast: stop at the first bad row.
        on_progress: receives the progress.
    """

    task: Task
    processors: Processors
    num_workers: int
    fail_fast: bool
    on_progress: OnProgress = ignore_progress

    def build(self, data: Dataset) -> ExampleIndex:
        """The index of all rows, from the cache if it has it; images are always checked.

        Raises:
            UserError: a row is bad, with `fail_fast`; or a column or the model does not fit the task.
            Interrupted: raised by `on_progress`.
        """
        self.task.check_processors(self.processors)
        file = cache_folder() / INDEX_FOLDER / f"{self._key(data)}.npz"
        index = load_index(file)
        if index is None or len(index) != len(data):
            index = self._index(data)
            if len(index) == len(data):
                with suppress(OSError):  # a cache that is full or read-only
                    save_index(index, file)
        if self.task.uses_images:
            index = self._check_images(data, index)
        if self.fail_fast and index.problems:
            raise UserError(data.describe(index.problems[0]))
        return index

    def _index(self, data: Dataset) -> ExampleIndex:
        """The index of all rows; with `fail_fast`, of the rows up to the first bad one or a few more."""

        def index_rows(rows: range) -> ExampleIndex:
            return self.task.index(data.slice(rows.start, rows.stop), self.processors)

        parts: list[ExampleIndex] = []
        chunks = _split(len(data), _chunk_rows(data))
        with closing(self._map(index_rows, chunks, _describe("scanning", data))) as results:
            for _, part in results:
                parts.append(part)
                if self.fail_fast and part.problems:
                    break
        return ExampleIndex.concatenate(parts)

    def _check_images(self, data: Dataset, index: ExampleIndex) -> ExampleIndex:
        """The index with problems of images; with `fail_fast`, only of those before the first row with another one."""
        rows = data.images_to_check()
        if self.fail_fast and index.problems:
            rows = rows[rows < index.problems[0].index]

        def check_rows(part: range) -> list[tuple[int, ImageCheck]]:
            return [(int(row), data.check_image(int(row))) for row in rows[part.start : part.stop]]

        problems: list[RowProblem] = []
        more_frames: list[int] = []
        chunks = _split(len(rows), CHUNK_IMAGES)
        with closing(self._map(check_rows, chunks, _describe("checking the images of", data))) as results:
            for _, checks in results:
                problems += [RowProblem(row, "image", check.problem) for row, check in checks if check.problem]
                more_frames += [row for row, check in checks if check.has_more_frames]
                if self.fail_fast and problems:
                    break
        merged = tuple(merge_problems(iter(index.problems), data.missing_values("image"), iter(problems)))
        notes = tuple(data.describe_image_checks(len(rows), more_frames))
        return replace(index, problems=merged, notes=notes)

    def _map(
        self, function: Callable[[range], T], chunks: Sequence[range], activity: str
    ) -> Generator[tuple[range, T]]:
        """Apply a function to consecutive ranges of rows, in order."""
        total = chunks[-1].stop if chunks else 0
        num_workers = min(self.num_workers, len(chunks)) if len(chunks) > 1 else 0
        reported = time.monotonic()
        with closing(map_in_workers(function, chunks, num_workers)) as results:
            for rows, result in zip(chunks, results, strict=True):
                if time.monotonic() - reported > PROGRESS_SECONDS or rows.stop == total:
                    self.on_progress(activity, rows.stop, total)
                    reported = time.monotonic()
                yield rows, result

    def _key(self, data: Dataset) -> str:
        versions = [f"{name} {version(name)}" for name in ("transformers", "tokenizers", "finetune-operator")]
        content = (data.fingerprint, sorted(data.decoders), self.processors.fingerprint, repr(self.task))
        parts = (INDEX_VERSION, *versions, *content)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _describe(verb: str, data: Dataset) -> str:
    """The activity of a progress report."""
    return f"{verb} {data.origin.field_path.removesuffix('.source')}"


def _chunk_rows(data: Dataset) -> int:
    """Rows with about `CHUNK_BYTES` of text."""
    columns = [column for role, column in data.columns.items() if role != "image"]
    row_bytes = sum(column.nbytes / max(1, len(column)) for column in columns)
    return max(1, min(MAX_CHUNK_ROWS, int(CHUNK_BYTES / max(1.0, row_bytes))))


def _split(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
