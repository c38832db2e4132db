"""The order of samples, as a pure function of the seed and a position, and the source of training batches.

A checkpoint stores the position of the source, so a resumed run continues with the same samples in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from finetune_trainer.data.loader import Batch


@dataclass(frozen=True)
class Position:
    """How much of the training data was used.

    Args:
        epoch: the current epoch, from 0.
        sample: samples of this epoch that were used, in the epoch's order.
    """

    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class TrainBatchSampler:
    """The micro-batches of a number of optimizer steps, as lists of indices.

    Each epoch is a permutation that depends on the seed and the number of the epoch only. The last incomplete batch of
    an epoch is dropped.

    Args:
        num_samples: size of the training set; at least `batch_size`.
        batch_size: samples per optimizer step.
        micro_batch_size: samples per micro-batch; divides `batch_size`.
        seed: seed of the permutations.
        num_steps: number of optimizer steps.
        start: position before the first of them.
    """

    num_samples: int
    batch_size: int
    micro_batch_size: int
    seed: int
    num_steps: int
    start: Position = Position()

    def __iter__(self) -> Iterator[list[int]]:
        position, current_epoch, order = self.start, -1, np.empty(0, dtype=np.int64)
        for _ in range(self.num_steps):
            position = self.after_step(position)
            if position.epoch != current_epoch:
                current_epoch = position.epoch
                order = np.random.default_rng([self.seed, current_epoch]).permutation(self.num_samples)
            first = position.sample - self.batch_size
            for start in range(first, position.sample, self.micro_batch_size):
                yield order[start : start + self.micro_batch_size].tolist()

    def after_step(self, position: Position) -> Position:
        """The position after one more optimizer step."""
        if position.sample + self.batch_size > self.num_samples:
            return Position(position.epoch + 1, self.batch_size)
        return replace(position, sample=position.sample + self.batch_size)


class TrainDataSource:
    """The batches of the training set from a position on.

    Workers load batches ahead; the position is that of the batches that were handed out.

    Args:
        sampler: the order, and the position to start from.
        load: loads the micro-batches of the given indices, in this order.
    """

    def __init__(self, sampler: TrainBatchSampler, load: Callable[[Iterable[list[int]]], Generator[Batch]]) -> None:
        self._sampler, self._position, self._batches = sampler, sampler.start, load(sampler)

    def next_step(self) -> list[Batch]:
        """The micro-batches of the next optimizer step."""
        micro_batches = list(islice(self._batches, self._sampler.batch_size // self._sampler.micro_batch_size))
        self._position = self._sampler.after_step(self._position)
        return micro_batches

    def position(self) -> Mapping[str, Any]:
        """The position after the last step that was handed out, as JSON; the arguments of `Position`."""
        return asdict(self._position)

    def close(self) -> None:
        """End the workers."""
        self._batches.close()


def evaluation_batches(num_samples: int, batch_size: int, seed: int) -> list[list[int]]:
    """All samples in batches of indices; the last one may be smaller.

    They are shuffled, always in the same order: in a dataset sorted by class, a batch would have a single class, which
    changes metrics that compare the samples of a batch.
    """
    order = np.random.default_rng(seed).permutation(num_samples)
    return [order[start : start + batch_size].tolist() for start in range(0, num_samples, batch_size)]
