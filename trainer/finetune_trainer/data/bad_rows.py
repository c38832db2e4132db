"""What becomes of rows that cannot be used: the run ends with the first, or they are left out and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from finetune_api.data import Data
from finetune_trainer.data.dataset import Dataset, Problem
from finetune_trainer.errors import UserError


@dataclass
class BadRows:
    """Meets the rows that cannot be used, as `data.onBadRow` says.

    Args:
        skip: leave them out.
        limit: more than so many in a data set are too many to be left out.
    """

    skip: bool
    limit: int
    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Data) -> BadRows:
        return cls(data.on_bad_row == "Skip", data.max_bad_rows)

    def meet(self, said: str, text: str) -> None:
        """A row of the data set that the manifest calls `said` cannot be used; `text` tells which, and why.

        Raises:
            UserError: bad rows end the run, or this is one too many.
        """
        if not self.skip:
            raise UserError(text)
        count = self._counts[said] = self._counts.get(said, 0) + 1
        example = self._examples.setdefault(said, text)
        if count > self.limit:
            raise UserError(
                f"{said}: {count} rows or more cannot be used, but data.maxBadRows is {self.limit}; "
                f"the first: {_short(said, example)}"
            )

    def drop(self, dataset: Dataset, problems: Iterable[Problem]) -> Dataset:
        """The data set without the rows that have a problem."""
        dropped: set[int] = set()
        for problem in problems:
            if problem.index not in dropped:
                self.meet(dataset.files.said, dataset.describe(problem))
                dropped.add(problem.index)
        if len(dropped) == len(dataset):
            raise UserError(f"{dataset.files.said}: none of its rows can be used, e.g. {self._last(dataset)}")
        return dataset.without(dropped) if dropped else dataset

    def notes(self) -> Iterator[str]:
        """How many rows are left out, for each data set that has some."""
        for said, count in self._counts.items():
            rows = "1 row" if count == 1 else f"{count} rows"
            yield f"{rows} cannot be used and left out (data.onBadRow: Skip); the first: {self._examples[said]}"

    def _last(self, dataset: Dataset) -> str:
        return _short(dataset.files.said, self._examples.get(dataset.files.said, "it is empty"))


def _short(said: str, text: str) -> str:
    """A text without the field that it begins with, for a sentence that has named it."""
    return text.removeprefix(f"{said}: ")
