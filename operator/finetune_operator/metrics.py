"""Prometheus metrics of the operator itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILE_TOTAL = Counter("finetune_reconcile", "Number of reconciliations, by result.", ["result"], registry=REGISTRY)
RECONCILE_ERRORS = Counter("finetune_reconcile_errors", "Number of failed reconciliations.", registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "finetune_reconcile_duration_seconds",
    "Duration of a reconciliation, including its writes.",
    registry=REGISTRY,
)
API_CALLS = Counter(
    "finetune_api_calls",
    "Number of requests to the API server; code 0 means no response.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
