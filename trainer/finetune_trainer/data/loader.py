"""Loads batches, in worker processes if there are any. The order is decided by a sampler."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from finetune_trainer.data.dataset import Dataset, Sample
from finetune_trainer.errors import RunError, UserError

Batch = dict[str, torch.Tensor]
"""The tensors of one micro-batch, by name of the model's argument."""


@dataclass(frozen=True)
class _BatchDataset(TorchDataset[Batch | RunError]):
    """Maps lists of indices to batches. Returns errors: torch would wrap a raised one in the worker's traceback."""

    dataset: Dataset
    collate: Callable[[Sequence[Sample]], Batch]

    def __getitem__(self, indices: list[int]) -> Batch | RunError:
        try:
            return self.collate([self.dataset[index] for index in indices])
        except RunError as error:
            return error


def load_batches(
    dataset: Dataset,
    batch_indices: Iterable[list[int]],
    collate: Callable[[Sequence[Sample]], Batch],
    num_workers: int,
    pin_memory: bool,
) -> Generator[Batch]:
    """Load batches in the given order. Worker processes prefetch them and do not change them.

    Args:
        dataset: the samples.
        batch_indices: the indices of each batch.
        collate: makes a batch of samples.
        num_workers: number of worker processes; 0 loads in this process.
        pin_memory: copy batches into pinned memory, for asynchronous transfers to a GPU.

    Raises:
        RunError: a sample could not be loaded.
    """
    loader = DataLoader(
        _BatchDataset(dataset, collate),
        sampler=batch_indices,
        batch_size=None,
        collate_fn=_identity,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # so that the global random state does not depend on where a run was resumed
        worker_init_fn=_init_worker,
        multiprocessing_context="fork" if num_workers else None,  # shares the dataset with the workers
    )
    try:
        for batch in loader:
            if isinstance(batch, RunError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "Bus error" in str(error):
            raise UserError(
                "data loading workers ran out of shared memory: raise resources.sharedMemory, or lower data.workers"
            ) from error
        raise


def _init_worker(worker_id: int) -> None:
    """Ignore the signals that stop a run: the process group receives them too, but the run finishes its current step.

    A worker ends when the data loader or its parent process ends. On SIGUSR1 it prints its stack, for the watchdog.
    """
    faulthandler.register(signal.SIGUSR1, file=2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _identity(batch: Any) -> Any:
    return batch
