"""The index of a dataset: size and problems of each example, from one pass over the data.

It answers everything that is asked about the examples before they are trained on, so that the data is tokenized once:
which rows are bad, how many are truncated, which are the longest, and which token ids occur.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

from finetune_trainer.data import RowProblem


@dataclass(frozen=True)
class ExampleIndex:
    """Size and problems of each example of a dataset, in the order of its rows.

    Args:
        lengths: tokens before truncation, of shape (rows,); 0 without text, and for a bad row.
        num_items: items that the loss sums over, after truncation, of shape (rows,); 0 for a bad row.
        max_token_ids: largest token id, of shape (rows,); -1 without text, and for a bad row.
        problems: why rows cannot be used, in row order.
        notes: what else was found, for the user.
    """

    lengths: np.ndarray
    num_items: np.ndarray
    max_token_ids: np.ndarray
    problems: tuple[RowProblem, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def without_text(cls, num_rows: int, problems: Sequence[RowProblem] = ()) -> ExampleIndex:
        """The index of examples that have no text, and one item each."""
        zeros = np.zeros(num_rows, np.int32)
        return cls(zeros, zeros + 1, zeros - 1, tuple(problems))

    @classmethod
    def concatenate(cls, parts: Sequence[ExampleIndex]) -> ExampleIndex:
        """The index of consecutive parts of a dataset."""
        if not parts:
            return cls.without_text(0)
        starts = np.cumsum([0, *(len(part) for part in parts)])
        problems = (
            replace(problem, index=problem.index + int(start))
            for start, part in zip(starts, parts, strict=False)
            for problem in part.problems
        )
        return cls(
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.num_items for part in parts]),
            np.concatenate([part.max_token_ids for part in parts]),
            tuple(problems),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def bad_rows(self) -> np.ndarray:
        """The indices of the rows with a problem, ascending."""
        return np.unique([problem.index for problem in self.problems]).astype(np.int64)

    def drop_bad_rows(self) -> ExampleIndex:
        """The index of the dataset without its bad rows."""
        bad = self.bad_rows
        return replace(
            self,
            lengths=np.delete(self.lengths, bad),
            num_items=np.delete(self.num_items, bad),
            max_token_ids=np.delete(self.max_token_ids, bad),
            problems=(),
        )

    def count_truncated(self, max_length: int) -> int:
        """Number of texts with more than `max_length` tokens."""
        return int((self.lengths > max_length).sum())

    def longest(self, count: int) -> list[int]:
        """The rows with the most tokens, longest first; rows of equal length in their order."""
        rows: list[int] = np.argsort(-self.lengths, kind="stable")[:count].tolist()
        return rows


def save_index(index: ExampleIndex, file: Path) -> None:
    """Write an index; another process never sees a part of it.

    Raises:
        OSError: the disk is full or read-only.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid4().hex}.npz")
    problems = json.dumps([asdict(problem) for problem in index.problems])
    try:
        np.savez(
            temporary,
            lengths=index.lengths,
            num_items=index.num_items,
            max_token_ids=index.max_token_ids,
            problems=np.array(problems),
        )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_index(file: Path) -> ExampleIndex | None:
    """Read an index; None if there is none, or if the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            problems = tuple(RowProblem(**problem) for problem in json.loads(str(arrays["problems"])))
            return ExampleIndex(arrays["lengths"], arrays["num_items"], arrays["max_token_ids"], problems)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile):  # it is only a cache
        return None
