"""The work queue: every key waits in it at most once, and is in the hands of at most one worker."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque

from finetune_operator.core.observed import Key

FIRST_DELAY = 0.25
LAST_DELAY = 30.0


class WorkQueue:
    """A queue of keys that drops duplicates.

    A key that is added while a worker has it comes back once the worker is done, so that no change is missed and no two
    workers ever act on one object.
    """

    def __init__(self) -> None:
        self._waiting: deque[Key] = deque()
        self._since: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._filled = asyncio.Event()

    def add(self, key: Key) -> None:
        """Let somebody look at this key, soon."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = time.monotonic()
            self._waiting.append(key)
            self._filled.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Let somebody look at this key later; the earliest such wish counts."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is not None and known.when() <= loop.time() + seconds:
            return
        if known is not None:
            known.cancel()
        self._timers[key] = loop.call_later(max(seconds, 0.0), self._due, key)

    def retry(self, key: Key) -> float:
        """Let somebody look again after a failure; the delay doubles with each. Returns the delay."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(LAST_DELAY, FIRST_DELAY * 2.0 ** (failures - 1)) * random.uniform(0.8, 1.2)  # noqa: S311 jitter
        self.add_after(key, delay)
        return delay

    def forgive(self, key: Key) -> None:
        """The last look at this key went well."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The key that has waited longest; the caller has to call `done` with it."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        key = self._waiting.popleft()
        del self._since[key]
        self._busy.add(key)
        return key

    def done(self, key: Key) -> None:
        """The worker has finished with this key."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    @property
    def depth(self) -> int:
        return len(self._waiting)

    @property
    def age(self) -> float:
        """Seconds that the first key has waited."""
        return time.monotonic() - self._since[self._waiting[0]] if self._waiting else 0.0

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
