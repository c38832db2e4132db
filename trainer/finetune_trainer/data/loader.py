"""Loads batches, and processes parts of a dataset, in worker processes if there are any.

The order of batches is decided by a sampler.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from finetune_trainer.compat.torch_data import shut_down_workers
from finetune_trainer.data.dataset import Dataset, Sample
from finetune_trainer.errors import RunError, UserError

Batch = dict[str, torch.Tensor]
"""The tensors of one micro-batch, by name of the model's argument."""


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _FunctionDataset(TorchDataset[Any], Generic[T, R]):
    """Maps items with a function. Returns errors: torch would wrap a raised one in the worker's traceback."""

    function: Callable[[T], R]

    def __getitem__(self, item: T) -> R | RunError:
        try:
            return self.function(item)
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

    def load_batch(indices: list[int]) -> Batch:
        return collate([dataset[index] for index in indices])

    return map_in_workers(load_batch, batch_indices, num_workers, pin_memory=pin_memory)


def map_in_workers(
    function: Callable[[T], R], items: Iterable[T], num_workers: int, *, pin_memory: bool = False
) -> Generator[R]:
    """Apply a function to items, in order. The worker processes are forks: they share the memory of this process.

    Args:
        function: applied to each item; only its results are sent between processes.
        items: small values that say what to do, such as row numbers.
        num_workers: number of worker processes; 0 computes in this process.
        pin_memory: copy tensors into pinned memory, for asynchronous transfers to a GPU.

    Raises:
        RunError: raised by the function, or a worker ended.
    """
    if num_workers:  # workers run in parallel already, and threads do not survive a fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        # The number of workers is that of data.workers, whatever the number of cores.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(
            _FunctionDataset(function),
            sampler=items,
            batch_size=None,
            collate_fn=_identity,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # so that the global random state does not depend on where a run was resumed
            worker_init_fn=_init_worker,
            multiprocessing_context="fork" if num_workers else None,
        )
        results = iter(loader)
    try:
        for result in results:
            if isinstance(result, RunError):
                raise result
            yield result
    except RuntimeError as error:
        raise _explain_worker_error(error) from error
    finally:
        shut_down_workers(results)


def _explain_worker_error(error: RuntimeError) -> Exception:
    if "Bus error" in str(error):
        return UserError(
            "data loading workers ran out of shared memory: raise resources.sharedMemory, or lower data.workers"
        )
    return error


def _init_worker(worker_id: int) -> None:
    """Ignore the signals that stop a run: the process group receives them too, but the run finishes its current step.

    A worker ends when the data loader or its parent process ends. On SIGUSR1 it prints its stack, for the watchdog.
    """
    faulthandler.register(signal.SIGUSR1, file=2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _identity(batch: Any) -> Any:
    return batch
