"""What happens to bad rows: the first one fails the run, or they are skipped and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from finetune_api.data import Data
from finetune_trainer.data.dataset import Dataset, RowProblem
from finetune_trainer.errors import UserError


@dataclass
class BadRowPolicy:
    """Applies `data.onBadRow` and `data.maxBadRows`.

    Args:
        skip: skip bad rows instead of failing.
        limit: maximum number of bad rows per dataset.
    """

    skip: bool
    limit: int
    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)

    @classmethod
    def from_spec(cls, data: Data) -> BadRowPolicy:
        return cls(data.on_bad_row == "Skip", data.max_bad_rows)

    def report(self, field_path: str, problem: str) -> None:
        """Report a bad row.

        Args:
            field_path: field of the manifest that names the dataset.
            problem: complete message that names the row and the reason.

        Raises:
            UserError: bad rows are not skipped, or there are more than the limit.
        """
        if not self.skip:
            raise UserError(problem)
        count = self._counts[field_path] = self._counts.get(field_path, 0) + 1
        example = self._examples.setdefault(field_path, problem)
        if count > self.limit:
            raise UserError(
                f"{field_path}: at least {count} bad rows, but data.maxBadRows is {self.limit}; "
                f"the first: {example.removeprefix(f'{field_path}: ')}"
            )

    def drop_rows(self, dataset: Dataset, problems: Iterable[RowProblem]) -> Dataset:
        """The dataset without the rows that have a problem.

        Raises:
            UserError: bad rows are not skipped, there are more than the limit, or no rows are left.
        """
        dropped: set[int] = set()
        for problem in problems:
            if problem.index not in dropped:
                self.report(dataset.origin.field_path, dataset.describe(problem))
                dropped.add(problem.index)
        if len(dropped) == len(dataset):
            raise self.all_bad_error(dataset.origin.field_path)
        return dataset.drop_rows(dropped) if dropped else dataset

    def add_note(self, note: str) -> None:
        """Report how a file was understood."""
        self._notes.append(note)

    def notes(self) -> Iterator[str]:
        """How files were understood, and how many rows were skipped, for each dataset with bad rows."""
        yield from self._notes
        for field_path, count in self._counts.items():
            rows = "1 bad row" if count == 1 else f"{count:,} bad rows"
            yield f"skipping {rows} (data.onBadRow: Skip); the first: {self._examples[field_path]}"

    def all_bad_error(self, field_path: str) -> UserError:
        """The error for a dataset of which no rows are left."""
        example = self._examples.get(field_path, "it is empty").removeprefix(f"{field_path}: ")
        return UserError(f"{field_path}: all of its rows are bad, e.g. {example}")

    def has_skipped(self, field_path: str) -> bool:
        """Whether rows of a dataset were skipped."""
        return field_path in self._counts
