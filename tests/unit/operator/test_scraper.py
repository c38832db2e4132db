"""A trainer is asked for its metrics with limits on time and size."""

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
async def answering(handler: Handler) -> AsyncIterator[ScrapeTarget]:
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


async def ask(handler: Handler) -> ProgressSnapshot | None:
    async with answering(handler) as target, aiohttp.ClientSession() as session:
        return await scrape(session, target)


async def test_a_page_that_is_too_long_is_not_read() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(MAX_PAGE_BYTES // 1024 + 64):
            await response.write(b"finetune_step 1\n" * 64)
        return response

    assert await ask(endless) is None


async def test_a_pod_that_does_not_answer_is_not_waited_for() -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    started = time.monotonic()
    assert await ask(silent) is None
    assert time.monotonic() - started < 20


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://127.0.0.1:1/")

    assert await ask(elsewhere) is None


async def test_a_page_is_fetched() -> None:
    async def fine(_: web.Request) -> web.StreamResponse:
        return web.Response(text="finetune_step 3\n")

    reading = await ask(fine)
    assert reading and reading.progress.step == 3 and reading.attempt_number == 1
