"""A work queue like that of client-go: each key is queued at most once, and processed by at most one worker at a time.

Written by hand because asyncio.Queue neither deduplicates nor delays.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque

from finetune_operator.core.objects import NamespacedName

BASE_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 30.0


class WorkQueue:
    """A queue of keys without duplicates.

    A key that is added while a worker processes it is queued again when the worker is done, so that no change is missed
    and no two workers process one key.
    """

    def __init__(self) -> None:
        self._queue: deque[NamespacedName] = deque()
        self._queued_at: dict[NamespacedName, float] = {}
        self._processing: set[NamespacedName] = set()
        self._dirty: set[NamespacedName] = set()
        self._timers: dict[NamespacedName, asyncio.TimerHandle] = {}
        self._failures: dict[NamespacedName, int] = {}
        self._not_empty = asyncio.Event()

    def add(self, key: NamespacedName) -> None:
        """Queue a key."""
        if key in self._processing:
            self._dirty.add(key)
        elif key not in self._queued_at:
            self._queued_at[key] = time.monotonic()
            self._queue.append(key)
            self._not_empty.set()

    def add_after(self, key: NamespacedName, seconds: float) -> None:
        """Queue a key after a delay. A key has one timer: the earliest of several is kept."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + seconds:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(max(seconds, 0.0), self._on_timer, key)

    def _on_timer(self, key: NamespacedName) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def add_rate_limited(self, key: NamespacedName) -> float:
        """Queue a key after a failure, with exponential backoff. Returns the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(MAX_DELAY_SECONDS, BASE_DELAY_SECONDS * 2.0 ** (failures - 1))
        delay *= random.uniform(0.8, 1.2)  # noqa: S311 jitter
        self.add_after(key, delay)
        return delay

    def forget(self, key: NamespacedName) -> None:
        """Reset the backoff of a key, after a success."""
        self._failures.pop(key, None)

    async def get(self) -> NamespacedName:
        """Wait for the next key; call `done` with it afterwards."""
        while not self._queue:
            self._not_empty.clear()
            await self._not_empty.wait()
        key = self._queue.popleft()
        del self._queued_at[key]
        self._processing.add(key)
        return key

    def done(self, key: NamespacedName) -> None:
        """Mark a key as processed."""
        self._processing.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    @property
    def depth(self) -> int:
        """Number of queued keys."""
        return len(self._queue)

    @property
    def age_seconds(self) -> float:
        """How long the first key has been queued."""
        return time.monotonic() - self._queued_at[self._queue[0]] if self._queue else 0.0
