"""Work queue, cache, metrics and configuration."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.config import Config, ConfigError, load
from finetune_operator.core.children import AttemptJob
from finetune_operator.core.objects import NamespacedName
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.job_metrics import JobCollector
from finetune_operator.runtime.queue import WorkQueue

A, B = NamespacedName("default", "a"), NamespacedName("default", "b")


async def test_queue_deduplicates_and_requeues_keys_added_while_processed() -> None:
    queue = WorkQueue()
    for key in (A, A, B):
        queue.add(key)
    assert queue.depth == 2 and await queue.get() == A
    queue.add(A)
    assert queue.depth == 1
    queue.done(A)
    assert [await queue.get(), await queue.get()] == [B, A]


async def test_queue_delays_and_rate_limits() -> None:
    queue = WorkQueue()
    queue.add_after(A, 60)
    queue.add_after(A, 0.01)
    assert await asyncio.wait_for(queue.get(), 5) == A
    assert queue.add_rate_limited(B) < queue.add_rate_limited(B) < queue.add_rate_limited(B)
    queue.forget(B)
    assert queue.add_rate_limited(B) < 1


def make_object(kind: str, name: str, version: int = 1, **status: Any) -> dict[str, Any]:
    labels = {"finetune.dev/job": "a", "finetune.dev/attempt": "1"}
    metadata = {
        "name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels if kind != "job" else {},
    }  # fmt: skip
    spec = {"model": {"source": "hf://a/b"}, "data": {"train": {"source": "hf://a/b"}}} if kind == "job" else {}
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"} if kind == "job" else {}
    return head | {"metadata": metadata, "spec": spec, "status": status}


def test_cache_keeps_the_newest_version() -> None:
    cache = Cache()
    cache.put("finetunejobs", make_object("job", "a", 7, attempt=2))
    cache.put("finetunejobs", make_object("job", "a", 6, attempt=1))
    assert cache.jobs[A].status.attempt == 2


def test_cache_keeps_the_end_of_a_deleted_pod_until_it_is_purged() -> None:
    cache = Cache()
    terminated = {"terminated": {"exitCode": 3}}
    pod = make_object("pod", "p", phase="Failed", containerStatuses=[{"name": "trainer", "state": terminated}])
    cache.put("pods", pod)
    assert cache.delete("pods", pod) == A
    (kept,) = cache.children(A).pods
    assert kept.deleted and kept.terminal and kept.terminated and kept.terminated.exit_code == 3
    cache.purge(cache.names())
    assert not cache.children(A).pods


@pytest.mark.parametrize(("suspended", "started"), [("True", None), ("False", datetime(2026, 1, 2, tzinfo=UTC))])
def test_resumed_job_has_no_start_time_until_its_suspended_condition_is_false(
    suspended: str, started: datetime | None
) -> None:
    condition = {"type": "Suspended", "status": suspended, "lastTransitionTime": "2026-01-02T01:00:00Z"}
    found = AttemptJob.from_object(
        make_object("attempt", "a-a1", startTime="2026-01-02T00:00:00Z", conditions=[condition])
    )
    assert found.started_at == started and not found.suspended


def test_metrics_of_a_finished_job_are_exported() -> None:
    cache = Cache()
    module = {"name": "visual", "learningRate": 0.5}
    condition = {
        "type": "Succeeded", "status": "True", "reason": "Succeeded", "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
    }  # fmt: skip
    cache.put("finetunejobs", make_object("job", "a", conditions=[condition], modules=[module], progress={"step": 9}))
    samples = {it.name: it for family in JobCollector(cache, WorkQueue()).collect() for it in family.samples}
    assert samples["finetune_job_step"].value == 9
    assert samples["finetune_job_learning_rate"].labels == {"namespace": "default", "name": "a", "module": "visual"}
    assert samples["finetune_jobs"].labels == {"state": "Succeeded"}


def test_training_metrics_end_with_the_cleanup() -> None:
    cache = Cache()
    module = {"name": "visual", "learningRate": 0.5}
    cleaned = "2026-01-01T00:00:00Z"
    cache.put("finetunejobs", make_object("job", "a", progress={"step": 9}, modules=[module], cleanupTime=cleaned))
    samples = {it.name for family in JobCollector(cache, WorkQueue()).collect() for it in family.samples}
    assert "finetune_job_info" in samples
    assert not samples & {"finetune_job_step", "finetune_job_learning_rate"}


def test_empty_config_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("")
    assert load(path) == Config() == load(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {imagePullPolicy: Sometimes}", "trainer.imagePullPolicy"),
        ("trainer: {imag: x}", "trainer.imag"),
        ("trainer: {tolerations: [{value: x}]}", r"trainer\.tolerations\[0\]\.key"),
        ("a: [", "invalid YAML"),
    ],
)
def test_invalid_config_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)
