"""Internals of `torch.utils.data`: how a data loader ends its workers.

Used as of torch 2.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def shut_down_workers(iterator: Iterator[Any]) -> None:
    """End the workers of a data loader's iterator now, not when it is deleted.

    The traceback of an exception keeps the iterator. At its exit, the process would then wait for the workers forever,
    because they ignore SIGTERM.
    """
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
