"""Progress of a run for machines: Prometheus, metrics.jsonl, the termination message."""
