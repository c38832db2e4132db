"""Prometheus metrics of the operator itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILE_TOTAL = Counter("finetune_reconcile", "Reconciliations, by result.", ["result"], registry=REGISTRY)
RECONCILE_ERRORS = Counter("finetune_reconcile_errors", "Reconciliations that failed.", registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "finetune_reconcile_duration_seconds", "How long a reconciliation took, its writes included.", registry=REGISTRY
)
API_CALLS = Counter(
    "finetune_api_calls",
    "Calls to the API server; code 0 is no answer.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
