"""Asks every running trainer for its progress, all at once, and remembers the latest answer of each."""

from __future__ import annotations

import asyncio

import aiohttp

from finetune_operator.core.observed import Key
from finetune_operator.core.progress import Target, read
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

AT_ONCE = 64


class Poller:
    """One question at a time per trainer; one that is slow is skipped, not waited for."""

    def __init__(self, cache: Cache, queue: WorkQueue, every: float) -> None:
        self._cache = cache
        self._queue = queue
        self._every = every
        self._asking: dict[Key, asyncio.Task[None]] = {}
        self._limit = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        # No proxy from the environment: pods are reached directly or not at all.
        async with aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(force_close=True)) as session:
            while True:
                for key, target in self._cache.targets().items():
                    if key not in self._asking:
                        self._asking[key] = asyncio.create_task(self._ask(session, key, target))
                await asyncio.sleep(self._every)

    async def _ask(self, session: aiohttp.ClientSession, key: Key, target: Target) -> None:
        try:
            async with self._limit:
                reading = await read(session, target)
            if reading is not None and key in self._cache.jobs:
                self._cache.readings[key] = reading
                self._queue.add(key)
        finally:
            self._asking.pop(key, None)
