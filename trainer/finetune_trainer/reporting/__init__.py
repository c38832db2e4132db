"""Machine-readable progress of a run: Prometheus metrics, metrics.jsonl and the termination message."""
