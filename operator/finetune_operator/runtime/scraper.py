"""Scrapes the metrics of every running trainer, concurrently, into the cache.

Trainer pods run images of users, so time and size of a response are limited, and a slow pod never delays another.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from finetune_operator.core.objects import NamespacedName
from finetune_operator.core.progress import ProgressSnapshot, parse_metrics_page
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue

MAX_CONCURRENT_SCRAPES = 64
SCRAPE_TIMEOUT_SECONDS = 2.0
MAX_PAGE_BYTES = 256 * 1024


@dataclass(frozen=True)
class ScrapeTarget:
    """The metrics endpoint of rank 0 of an attempt."""

    attempt_number: int
    ip: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"http://{host}:{self.port}/metrics"


class Scraper:
    """Scrapes each target at an interval; a target whose last scrape is still running is skipped."""

    def __init__(self, cache: Cache, queue: WorkQueue, interval_seconds: float) -> None:
        self._cache = cache
        self._queue = queue
        self._interval_seconds = interval_seconds
        self._running: dict[NamespacedName, asyncio.Task[None]] = {}
        self._semaphore = asyncio.Semaphore(MAX_CONCURRENT_SCRAPES)

    async def run(self) -> None:
        """Scrape forever."""
        # No proxy from the environment: pods are reached directly or not at all.
        async with aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(force_close=True)) as session:
            while True:
                for key, target in scrape_targets(self._cache).items():
                    if key not in self._running:
                        self._running[key] = asyncio.create_task(self._scrape(session, key, target))
                await asyncio.sleep(self._interval_seconds)

    async def _scrape(self, session: aiohttp.ClientSession, key: NamespacedName, target: ScrapeTarget) -> None:
        try:
            async with self._semaphore:
                snapshot = await scrape(session, target)
            if snapshot is not None and key in self._cache.jobs:
                self._cache.snapshots[key] = snapshot
                self._queue.add(key)
        finally:
            self._running.pop(key, None)


def scrape_targets(cache: Cache) -> dict[NamespacedName, ScrapeTarget]:
    """Rank 0 of every running job."""
    targets = {}
    for key, job in cache.jobs.items():
        number = job.status.attempt or 0
        pod = next((it for it in cache.children(key).pods_of(number) if it.rank == 0 and it.running), None)
        if pod and not pod.terminal and pod.ip and pod.metrics_port and not job.finished:
            targets[key] = ScrapeTarget(number, pod.ip, pod.metrics_port)
    return targets


async def scrape(session: aiohttp.ClientSession, target: ScrapeTarget) -> ProgressSnapshot | None:
    """Scrape one trainer; None if it does not answer in time, or its page is too large or cannot be parsed."""
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_SECONDS):
            page = await _fetch(session, target.url)
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError):
        return None
    return parse_metrics_page(page, target.attempt_number, datetime.now(UTC)) if page is not None else None


async def _fetch(session: aiohttp.ClientSession, url: str) -> str | None:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            return None
        body = bytearray()
        async for chunk in response.content.iter_chunked(16 * 1024):
            body += chunk
            if len(body) > MAX_PAGE_BYTES:
                return None
        return body.decode()
