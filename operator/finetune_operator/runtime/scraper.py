"""Asks every running trainer for its progress, all at once, and remembers the latest answer of each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import aiohttp

from finetune_operator.core.observed import Key
from finetune_operator.core.progress import Reading, parse
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

AT_ONCE = 64
TIMEOUT_SECONDS = 2.0
MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Target:
    """Where rank 0 of an attempt answers."""

    attempt: int
    address: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"


async def read(session: aiohttp.ClientSession, target: Target) -> Reading | None:
    """Ask one trainer; None when it does not answer in time, says too much, or nothing of use."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            text = await _fetch(session, target.url)
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError):
        return None
    reading = parse(text, datetime.now(UTC)) if text is not None else None
    return replace(reading, attempt=target.attempt) if reading else None


async def _fetch(session: aiohttp.ClientSession, url: str) -> str | None:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            return None
        body = bytearray()
        async for chunk in response.content.iter_chunked(16 * 1024):
            body += chunk
            if len(body) > MAX_BYTES:
                return None
        return body.decode()


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
                for key, target in targets(self._cache).items():
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


def targets(cache: Cache) -> dict[Key, Target]:
    """Where rank 0 of every running job answers."""
    found = {}
    for key, job in cache.jobs.items():
        number = job.status.attempt or 0
        pod = next((it for it in cache.children(key).pods_of(number) if it.rank == 0 and it.running), None)
        if pod and pod.alive and pod.address and pod.port and not job.finished:
            found[key] = Target(number, pod.address, pod.port)
    return found
