"""What the kubelet and Prometheus ask the operator: /healthz, /readyz, /metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


class Health:
    """How the operator is: each check says what is wrong, or nothing.

    An operator that stands by for another is ready: it does all that it is there for.
    """

    def __init__(self) -> None:
        self.not_ready = "starting"
        self.checks: list[Callable[[], str]] = []

    def trouble(self) -> str:
        return "; ".join(found for check in self.checks if (found := check()))


@asynccontextmanager
async def serving(
    health: Health, registry: CollectorRegistry, metrics_port: int, health_port: int
) -> AsyncIterator[None]:
    """Answer on both ports for as long as the `async with` block."""
    probes = web.Application()
    probes.router.add_get("/healthz", _probe(health.trouble))
    probes.router.add_get("/readyz", _probe(lambda: health.not_ready or health.trouble()))
    metrics = web.Application()
    metrics.router.add_get("/metrics", _metrics(registry))
    runners = [web.AppRunner(app, access_log=None) for app in (probes, metrics)]
    try:
        for runner, port in zip(runners, (health_port, metrics_port), strict=True):
            await runner.setup()
            await web.TCPSite(runner, port=port).start()
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


def _probe(trouble: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.Response:
        found = trouble()
        return web.Response(text=(found or "ok") + "\n", status=503 if found else 200)

    return answer


def _metrics(registry: CollectorRegistry) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return answer
