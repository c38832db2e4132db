"""Endpoints for the kubelet and for Prometheus: /healthz, /readyz, /metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Health:
    """Health of the operator.

    `not_ready` says why the operator is not ready; empty once it is. Each check returns a problem, or an empty string.
    """

    def __init__(self) -> None:
        self.not_ready = "starting"
        self.checks: list[Callable[[], str]] = []

    def liveness_problem(self) -> str:
        return "; ".join(problem for check in self.checks if (problem := check()))

    def readiness_problem(self) -> str:
        return self.not_ready or self.liveness_problem()


@asynccontextmanager
async def serve_endpoints(
    health: Health, registry: CollectorRegistry, metrics_port: int, health_port: int
) -> AsyncIterator[None]:
    """Serve both ports inside the `async with` block."""
    probes = web.Application()
    probes.router.add_get("/healthz", _probe_handler(health.liveness_problem))
    probes.router.add_get("/readyz", _probe_handler(health.readiness_problem))
    metrics = web.Application()
    metrics.router.add_get("/metrics", _metrics_handler(registry))
    runners = [web.AppRunner(app, access_log=None) for app in (probes, metrics)]
    try:
        for runner, port in zip(runners, (health_port, metrics_port), strict=True):
            await runner.setup()
            await web.TCPSite(runner, port=port).start()
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


def _probe_handler(find_problem: Callable[[], str]) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        problem = find_problem()
        return web.Response(text=(problem or "ok") + "\n", status=503 if problem else 200)

    return handle


def _metrics_handler(registry: CollectorRegistry) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return handle
