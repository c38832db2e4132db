"""Trainers are scraped with limits on time and size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from finetune_operator.core.progress import ProgressSnapshot
from finetune_operator.runtime.scraper import MAX_PAGE_BYTES, ScrapeTarget, scrape

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[ScrapeTarget]:
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield ScrapeTarget(1, "127.0.0.1", int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()


async def scrape_once(handler: Handler) -> ProgressSnapshot | None:
    async with serving(handler) as target, aiohttp.ClientSession() as session:
        return await scrape(session, target)


async def test_page_beyond_the_size_limit_is_dropped() -> None:
    async def send_endless_page(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(MAX_PAGE_BYTES // 1024 + 64):
            await response.write(b"finetune_step 1\n" * 64)
        return response

    assert await scrape_once(send_endless_page) is None


async def test_scrape_times_out() -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    started = time.monotonic()
    assert await scrape_once(hang) is None
    assert time.monotonic() - started < 20


async def test_redirect_is_not_followed() -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://127.0.0.1:1/")

    assert await scrape_once(redirect) is None


async def test_scrapes_a_page() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text="finetune_step 3\n")

    snapshot = await scrape_once(answer)
    assert snapshot and snapshot.progress.step == 3 and snapshot.attempt_number == 1
