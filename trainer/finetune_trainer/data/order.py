"""Serves batches in an order that depends on (seed, epoch) alone.

Because the order is a pure function, a position is just a step, and a resumed run needs no state of the loader.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from finetune_trainer.data.dataset import Dataset, Row
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.training.signals import in_worker

Batch = dict[str, torch.Tensor]


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
class _Collated(torch.utils.data.Dataset[Batch | RunError]):
    """Lists of indices to batches. An error travels as a value: torch would wrap it in the worker's traceback."""

    dataset: Dataset
    collate: Callable[[Sequence[Row]], Batch]

    def __getitem__(self, indices: list[int]) -> Batch | RunError:
        try:
            return self.collate([self.dataset[index] for index in indices])
        except RunError as error:
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
            if isinstance(batch, RunError):
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
