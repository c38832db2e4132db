"""The state table of the reconciler, then the details of its cases."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.status import CheckpointStatus, Metric, Progress
from finetune_operator.config import Config
from finetune_operator.core.actions import Lookup
from finetune_operator.core.children import Children
from finetune_operator.core.objects import ReasonMessage
from finetune_operator.core.progress import ProgressSnapshot
from finetune_operator.core.reconcile import reconcile
from unit.operator.simulation import (
    START,
    Simulation,
    make_attempt_job,
    make_job,
    make_pod,
    running,
    started,
    terminated,
)


def test_attempt_is_in_status_before_it_is_created() -> None:
    sim = Simulation()
    actions = sim.step()
    assert actions.status and actions.status.attempt == 1 and not actions.creates
    actions = sim.step()
    assert [it.resource for it in actions.creates] == ["persistentvolumeclaims", "configmaps", "jobs"]
    assert not actions.status


def test_looks_up_claims_before_creating_anything() -> None:
    job = make_job(data={"train": {"source": "pvc://captions"}})
    actions = reconcile(job, Children(), START, Config())
    assert actions.lookup == Lookup(claims=("captions",)) and not actions.creates and not actions.status


def test_optional_references_and_secrets_are_not_looked_up() -> None:
    env = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "k", "optional": True}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]
    actions = reconcile(make_job(runtime={"env": env}), Children(), START, Config())
    assert actions.lookup == Lookup(config_map_keys=(("c", "k"),))


def test_mounted_claims_and_config_maps_are_looked_up() -> None:
    runtime = {
        "cacheClaim": "downloads",
        "volumes": [{"claim": "more", "mountPath": "/more"}, {"claim": "downloads", "mountPath": "/again"}],
        "envFrom": [
            {"configMapRef": {"name": "settings"}},
            {"configMapRef": {"name": "perhaps", "optional": True}},
            {"secretRef": {"name": "token"}},
        ],
    }
    data = {"train": {"source": "hf://org/data"}, "test": {"source": "pvc://held-out/test"}}
    actions = reconcile(make_job(runtime=runtime, data=data), Children(), START, Config())
    assert actions.lookup == Lookup(claims=("held-out", "more", "downloads"), config_maps=("settings",))


def test_conditions_of_a_running_job() -> None:
    sim = started()
    assert sim.job.state == "Running"
    assert sim.condition_statuses == {
        "Succeeded": "Unknown", "Reconciling": "True", "Stalled": "False", "Suspended": "False",
    }  # fmt: skip
    assert sim.job.status.start_time == START


@pytest.mark.parametrize(
    ("code", "oom", "reason"),
    [(2, False, "InvalidJob"), (77, False, "OutOfGPUMemory"), (78, False, "Diverged"), (137, True, "OutOfMemory")],
)
def test_permanent_failure_is_not_retried(code: int, oom: bool, reason: str) -> None:
    sim = started()
    sim.exit(code, oom_killed=oom)
    sim.run_job_controller()
    sim.settle()
    assert sim.job.state == "Failed" and sim.stalled_reason == reason
    assert sim.condition_statuses["Reconciling"] == "False"
    assert sim.created == ["job-a1"]


def test_crash_is_retried_after_the_backoff() -> None:
    sim = started()
    sim.exit(1, message="ValueError: boom")
    sim.run_job_controller()
    actions = sim.settle()
    assert sim.job.state == "Restarting" and actions.requeue_after == 10
    assert "boom" in sim.message
    sim.wait(10)
    sim.settle()
    assert sim.created == ["job-a1", "job-a2"] and sim.job.status.restarts == 1


def test_backoff_doubles_and_is_reset_by_a_long_attempt() -> None:
    sim = Simulation(retry={"limit": 10, "backoffSeconds": 10})
    waits = []
    for lasted in (1, 1, 1, 700, 1):
        sim.settle()
        sim.run()
        sim.wait(lasted)
        sim.exit(1)
        sim.run_job_controller()
        wait = sim.settle().requeue_after or 0
        waits.append(wait)
        sim.wait(wait)
    assert waits == [10, 20, 40, 10, 10]


def test_no_new_attempt_while_a_pod_is_active() -> None:
    sim = started()
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], failed=ReasonMessage("PodFailurePolicy", "x"))
    sim.wait(1000)
    sim.settle()
    assert sim.job.state == "Restarting" and sim.created == ["job-a1"]


def test_disruption_known_from_the_job_alone_uses_no_retry() -> None:
    sim = started()
    sim.pods.clear()
    text = "Pod default/job-a1-0 has condition DisruptionTarget matching FailJob rule at index 0"
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], failed=ReasonMessage("PodFailurePolicy", text))
    sim.settle()
    sim.wait(10)
    sim.settle()
    assert sim.created == ["job-a1", "job-a2"] and sim.job.status.restarts is None
    assert sim.attempts[0].disruption == "DisruptionTarget"


def test_exit_code_is_parsed_from_the_failed_job() -> None:
    sim = started()
    sim.pods.clear()
    text = "Container trainer for pod default/job-a1-0 failed with exit code 2 matching FailJob rule at index 1"
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], failed=ReasonMessage("PodFailurePolicy", text))
    sim.settle()
    assert sim.job.state == "Failed" and sim.stalled_reason == "InvalidJob"


def test_eviction_uses_a_retry_although_the_trainer_exited_with_75() -> None:
    sim = started()
    evicted = ReasonMessage("Evicted", "Usage of EmptyDir volume exceeds the limit")
    sim.exit(75, status_reason=evicted)
    sim.run_job_controller()
    sim.settle()
    assert sim.attempts[0].reason == "Evicted"
    sim.wait(10)
    sim.settle()
    assert sim.job.status.restarts == 1


def test_suspend_deletes_the_job_and_resume_starts_the_next_attempt() -> None:
    sim = started()
    sim.set_suspend(True)
    sim.settle()
    assert sim.job.state == "Suspending" and not sim.attempt_jobs
    sim.exit(75)
    sim.settle()
    assert sim.job.state == "Suspended" and sim.condition_statuses["Suspended"] == "True"
    sim.set_suspend(False)
    sim.settle()
    assert sim.created == ["job-a1", "job-a2"] and sim.job.status.restarts is None


def test_trainer_killed_during_suspension_is_recorded_as_suspended() -> None:
    sim = started()
    sim.set_suspend(True)
    sim.settle()
    sim.exit(143)
    sim.settle()
    assert sim.attempts[0].reason == "Suspended"


def test_job_created_suspended_does_not_start() -> None:
    sim = Simulation(suspend=True)
    sim.settle()
    assert sim.job.state == "Suspended" and not sim.created


def test_missing_reference_is_reported_and_looked_up_again() -> None:
    sim = Simulation()
    sim.missing = ("PersistentVolumeClaim a not found",)
    actions = sim.settle()
    assert sim.job.state == "Stalled" and actions.requeue_after == 10
    assert "PersistentVolumeClaim a not found" in sim.message
    sim.missing = ()
    sim.settle()
    assert sim.created == ["job-a1"] and sim.condition_statuses["Stalled"] == "False"


def test_invalid_spec_stalls_with_the_validation_error() -> None:
    job = make_job(training={"batchSize": "many"})
    actions = reconcile(job, Children(), START, Config())
    assert actions.status and "spec.training.batchSize" in actions.status.conditions[0].message
    assert actions.events[0].reason == "InvalidJob" and actions.events[0].type == "Warning"


def test_image_pull_error_has_a_stable_message_and_fails_after_the_deadline() -> None:
    sim = Simulation()
    sim.settle()
    cause = "rpc error: trainer:1 not found"
    waiting = [
        ReasonMessage("ErrImagePull", cause),
        ReasonMessage("ImagePullBackOff", f'Back-off pulling image "trainer:1": ErrImagePull: {cause}'),
    ]
    for state in waiting * 2:
        sim.pods[1] = replace(sim.pods[1], waiting=state)
        sim.settle()
        assert sim.job.state == "Pending" and sim.message == f"cannot pull image trainer:1: {cause}"
    sim.wait(600)
    actions = sim.step()
    assert sim.job.state == "Failed" and sim.stalled_reason == "ImagePullFailed"
    assert actions.deletes and not sim.attempt_jobs


def test_job_suspended_by_a_queue_is_queued_and_keeps_its_attempt() -> None:
    sim = Simulation()
    sim.settle()
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], suspended=True)
    sim.pods.clear()
    actions = sim.settle()
    assert sim.job.state == "Queued" and not actions.deletes


def test_pod_rejected_by_the_kubelet_is_retried_up_to_the_limit() -> None:
    sim = Simulation(retry={"limit": 1, "backoffSeconds": 10})
    for _ in range(6):
        sim.settle()
        if pod := sim.active_pod():
            rejected = ReasonMessage("OutOfcpu", "no CPU left")
            sim.pods[pod.attempt_number] = replace(pod, phase="Failed", status_reason=rejected)
        sim.run_job_controller()
        sim.settle()
        sim.wait(60)
    assert sim.created == ["job-a1", "job-a2"] and sim.job.state == "Failed"


def test_run_that_succeeds_while_suspending_has_succeeded() -> None:
    sim = started()
    sim.set_suspend(True)
    sim.settle()
    sim.exit(0)
    sim.settle()
    assert sim.job.state == "Succeeded" and sim.condition_statuses["Stalled"] == "False"


def test_pod_stopped_by_a_queue_does_not_end_the_attempt() -> None:
    sim = started()
    sim.exit(75)
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], suspended=True)
    sim.settle()
    assert sim.job.state == "Queued" and sim.attempts[0].reason is None
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], suspended=False)
    sim.pods[1] = running(make_pod())
    sim.settle()
    sim.exit(1)
    sim.run_job_controller()
    sim.settle()
    assert sim.attempts[0].reason == "Crashed"


def test_image_pull_deadline_starts_when_the_pod_is_scheduled() -> None:
    sim = Simulation()
    sim.settle()
    sim.wait(3600)
    refused = ReasonMessage("ErrImagePull", "rpc error: try again")
    sim.pods[1] = replace(sim.pods[1], waiting=refused, scheduled_at=sim.now)
    sim.settle()
    assert sim.job.state == "Pending"


def test_final_report_is_copied_to_status() -> None:
    sim = started()
    report = {
        "reason": "Succeeded", "message": "done in 40 steps", "progress": {"step": 40, "plannedSteps": 40},
        "output": {"destination": "pvc://job-output", "digest": "sha256:1"},
    }  # fmt: skip
    sim.exit(0, message=json.dumps(report))
    sim.run_job_controller()
    sim.settle()
    assert sim.job.state == "Succeeded" and sim.message == "done in 40 steps"
    assert sim.job.status.output and sim.job.status.output.digest == "sha256:1"
    assert sim.job.status.progress and sim.job.status.progress.summary == "40/40 (100%)"
    assert sim.job.status.completion_time


def snapshot(step: int, seconds: float) -> ProgressSnapshot:
    at = START + timedelta(seconds=seconds)
    return ProgressSnapshot(
        1,
        Progress(step=step, planned_steps=100, observed_time=at),
        (Metric(name="train/loss", value=1.0 / step, step=step),),
        checkpoint=CheckpointStatus(step=step, time=START),
    )


def test_progress_alone_is_written_once_per_interval() -> None:
    sim = started()

    def at(seconds: float, step: int) -> Any:
        children = replace(sim.children, snapshot=snapshot(step, seconds))
        return reconcile(sim.job, children, START + timedelta(seconds=seconds), sim.config)

    actions = at(0, 1)
    assert actions.status and actions.status.checkpoint
    assert actions.status.checkpoint.path == "pvc://job-output/.checkpoints/uid-1"
    sim.job = replace(sim.job, status=actions.status)
    later = at(5, 2)
    assert later.status is None and later.requeue_after == 10 and not later.events
    assert at(15, 3).status


def test_snapshot_of_an_earlier_attempt_is_ignored() -> None:
    sim = started()
    stale = replace(snapshot(9, 0), attempt_number=7)
    children = replace(sim.children, snapshot=stale)
    assert reconcile(sim.job, children, START, sim.config).status is None


def test_new_job_waits_for_children_of_an_earlier_job_of_the_same_name() -> None:
    old = make_attempt_job(owner_uid="another")
    for children in (Children(jobs=(old,)), Children(pods=(running(make_pod(3)),))):
        actions = reconcile(make_job(), replace(children, missing_references=()), START, Config())
        assert actions.status and actions.status.attempt is None and actions.requeue_after and not actions.creates


def test_pod_of_an_earlier_job_of_the_same_name_is_ignored() -> None:
    sim = started()
    sim.pods[1] = replace(sim.pods[1], name="old", owner_uid="another")
    sim.pods[1] = terminated(sim.pods[1], 2)
    assert not sim.step().status or sim.job.state == "Pending"
    assert sim.attempts[0].exit_code is None


def test_job_being_deleted_is_left_to_the_garbage_collector() -> None:
    sim = started()
    sim.job = replace(sim.job, deleting=True)
    actions = sim.reconcile()
    assert not actions.status and not actions.creates and not actions.deletes


def test_first_recorded_cause_is_kept() -> None:
    sim = started()
    sim.pods[1] = terminated(sim.pods[1], 137, oom_killed=True)
    sim.settle()
    sim.pods[1] = terminated(make_pod(), 143)
    sim.run_job_controller()
    sim.settle()
    assert sim.stalled_reason == "OutOfMemory"


def test_stalled_trainer_uses_a_retry() -> None:
    sim = started()
    sim.exit(76)
    sim.run_job_controller()
    sim.settle()
    (attempt,) = sim.attempts
    assert attempt.reason == "Stalled" and "stallTimeoutSeconds" in sim.message
    sim.wait(10)
    sim.settle()
    assert sim.created == ["job-a1", "job-a2"] and sim.job.status.restarts == 1


def test_container_create_error_stalls_with_its_message() -> None:
    sim = Simulation()
    sim.settle()
    sim.pods[1] = replace(sim.pods[1], waiting=ReasonMessage("CreateContainerError", "no such device"))
    sim.settle()
    assert sim.job.state == "Stalled" and "no such device" in sim.message


def test_without_a_pod_likely_causes_are_named() -> None:
    sim = Simulation(runtime={"serviceAccountName": "trainer"})
    sim.settle()
    sim.pods.clear()
    sim.settle()
    assert sim.job.state == "Pending" and "check that ServiceAccount trainer exists" in sim.message


def test_running_job_that_became_invalid_can_be_suspended() -> None:
    sim = started()
    sim.set_spec(training={"batchSize": "many"})
    sim.settle()
    assert sim.job.state == "Stalled" and sim.attempt_jobs
    sim.set_suspend(True)
    sim.settle()
    assert not sim.attempt_jobs
