"""The processes that train together. Today it is always one; with several, only this module changes.

The training loop, evaluations and checkpoints ask the group instead of assuming that they are alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class ProcessGroup(Protocol):
    """Collective operations: every process of the group calls them, in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0. Rank 0 writes the files."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all processes, on the tensor's device; does not synchronize with the host."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""


@dataclass(frozen=True)
class SingleProcess:
    """A group of one process. Its operations are free."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def any(self, flag: bool) -> bool:
        return flag

    def gather(self, value: T) -> list[T]:
        return [value]
