"""The order of samples, as a pure function of the seed and the position.

A position is just a step, so a resumed run continues in the same order without any state of the data loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrainBatchSampler:
    """The micro-batches of a range of optimizer steps, as lists of indices.

    Each epoch is a permutation that depends on the seed and the number of the epoch only. The last incomplete batch of
    an epoch is dropped.

    Args:
        num_samples: size of the training set.
        batch_size: samples per optimizer step.
        micro_batch_size: samples per micro-batch; divides `batch_size`.
        seed: seed of the permutations.
        start_step, end_step: range of optimizer steps, [start, end).
    """

    num_samples: int
    batch_size: int
    micro_batch_size: int
    seed: int
    start_step: int
    end_step: int

    def __iter__(self) -> Iterator[list[int]]:
        current_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.end_step):
            epoch, batch = divmod(step, self.num_samples // self.batch_size)
            if epoch != current_epoch:
                current_epoch = epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
            first = batch * self.batch_size
            for start in range(first, first + self.batch_size, self.micro_batch_size):
                yield order[start : start + self.micro_batch_size].tolist()


def evaluation_batches(num_samples: int, batch_size: int, seed: int) -> list[list[int]]:
    """All samples in batches of indices; the last one may be smaller.

    They are shuffled, always in the same order: in a dataset sorted by class, a batch would have a single class, which
    changes metrics that compare the samples of a batch.
    """
    order = np.random.default_rng(seed).permutation(num_samples)
    return [order[start : start + batch_size].tolist() for start in range(0, num_samples, batch_size)]
