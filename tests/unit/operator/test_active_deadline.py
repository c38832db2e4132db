"""`spec.activeDeadlineSeconds` limits the total time of all attempts, however they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_api.status import Progress
from finetune_operator.core.changes import update_status
from finetune_operator.core.objects import ReasonMessage
from unit.operator.simulation import Simulation, started


def test_exceeded_active_deadline_fails_and_deletes_the_job() -> None:
    sim = Simulation(activeDeadlineSeconds=100)
    sim.settle()
    sim.run()
    assert sim.settle().requeue_after == 100
    sim.wait(99)
    sim.settle()
    assert sim.job.state == "Running"
    sim.wait(1)
    actions = sim.step()
    assert sim.job.state == "Failed" and sim.stalled_reason == "DeadlineExceeded" and actions.deletes
    assert "spec.activeDeadlineSeconds" in sim.message and not sim.attempt_jobs
    assert sim.attempts[0].reason == "DeadlineExceeded"
    assert sim.job.status.active_seconds == 100 and sim.job.status.active_since is None


def test_active_time_is_the_sum_of_attempts_without_backoff() -> None:
    sim = Simulation(activeDeadlineSeconds=100, retry={"limit": 9, "backoffSeconds": 300})
    for _ in range(2):
        sim.settle()
        sim.run()
        sim.settle()
        sim.wait(40)
        sim.exit(1)
        sim.run_job_controller()
        sim.settle()
        sim.wait(300)
    assert sim.job.status.active_seconds == 80
    sim.settle()
    sim.wait(20)
    sim.settle()
    assert sim.job.state == "Failed" and sim.stalled_reason == "DeadlineExceeded"


def test_suspended_and_queued_time_is_not_active() -> None:
    sim = Simulation(activeDeadlineSeconds=100)
    sim.settle()
    sim.wait(30)
    sim.set_admitted(False)
    sim.settle()
    sim.wait(1000)
    sim.settle()
    assert sim.job.state == "Queued" and sim.job.status.active_seconds == 30
    sim.set_admitted(True)
    sim.settle()
    sim.wait(30)
    sim.set_suspend(True)
    sim.settle()
    sim.exit(75)
    sim.settle()
    sim.wait(1000)
    sim.set_suspend(False)
    sim.settle()
    assert sim.job.status.active_seconds == 60
    sim.wait(39)
    sim.settle()
    assert sim.job.state == "Pending"
    sim.wait(1)
    sim.settle()
    assert sim.job.state == "Failed"


def test_active_time_of_an_unobserved_attempt_counts() -> None:
    sim = Simulation(activeDeadlineSeconds=100)
    sim.step()
    sim.step()
    sim.run()
    sim.wait(70)
    sim.exit(75)
    sim.run_job_controller()
    sim.wait(500)
    sim.settle()
    assert sim.job.status.active_seconds == 70


@pytest.mark.parametrize(("code", "state"), [(0, "Succeeded"), (2, "Failed")])
def test_end_time_is_exact_although_the_operator_was_down(code: int, state: str) -> None:
    sim = Simulation(activeDeadlineSeconds=1000, ttlSecondsAfterFinished=20_000)
    sim.settle()
    sim.run()
    sim.settle()
    sim.wait(40)
    end = sim.now
    sim.exit(code)
    sim.run_job_controller()
    if code:
        text = f"Container trainer for pod default/job-a1-0 failed with exit code {code}"
        sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], failed=ReasonMessage("PodFailurePolicy", text))
    sim.delete_terminal_pods()
    sim.wait(10_000)
    sim.settle()
    status = sim.job.status
    assert sim.job.state == state
    assert (sim.attempts[0].end_time, status.completion_time, status.active_seconds) == (end, end, 40)
    assert sim.reconcile().requeue_after == 10_000


def test_job_deleted_while_the_operator_was_down_ended_when_last_observed() -> None:
    sim = started(activeDeadlineSeconds=1000)
    sim.wait(40)
    seen = Progress(step=1, observed_time=sim.now)
    sim.job = replace(sim.job, status=update_status(sim.job.status, progress=seen))
    end = sim.now
    sim.delete_job()
    sim.exit(143)
    sim.pods.clear()
    sim.wait(10_000)
    sim.step()
    status = sim.job.status
    assert (sim.attempts[0].end_time, status.active_seconds) == (end, 40)


def test_interval_is_counted_once_when_a_queue_suspends_the_job() -> None:
    sim = started(activeDeadlineSeconds=1000)
    sim.wait(30)
    sim.exit(143)
    sim.settle()
    assert sim.job.status.active_seconds == 30
    sim.pods.clear()
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], suspended=True)  # asked for; the Job controller has yet to act
    sim.settle()
    sim.wait(500)
    sim.set_admitted(False)
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], started_at=None, suspended_at=sim.now)
    sim.settle()
    assert sim.job.status.active_seconds == 30


def test_active_deadline_applies_while_a_queue_suspends_the_job() -> None:
    sim = started(activeDeadlineSeconds=100)
    sim.wait(90)
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], suspended=True)
    sim.settle()
    assert sim.job.state == "Queued"
    sim.wait(10)
    sim.settle()
    assert sim.job.state == "Failed" and sim.stalled_reason == "DeadlineExceeded"


def test_active_deadline_can_be_raised() -> None:
    sim = started(activeDeadlineSeconds=100)
    sim.wait(90)
    sim.set_spec(activeDeadlineSeconds=1000)
    assert sim.settle().requeue_after == 910
    sim.wait(100)
    sim.settle()
    assert sim.job.state == "Running"


def test_no_new_attempt_once_the_active_deadline_is_used_up() -> None:
    sim = Simulation(activeDeadlineSeconds=1000)
    sim.settle()
    sim.wait(60)
    sim.exit(1)
    sim.run_job_controller()
    sim.settle()
    sim.set_spec(activeDeadlineSeconds=50)
    sim.settle()
    assert sim.job.state == "Failed" and sim.created == ["job-a1"]


def test_run_that_succeeds_at_the_deadline_has_succeeded() -> None:
    sim = started(activeDeadlineSeconds=100)
    sim.wait(100)
    sim.exit(0)
    sim.settle()
    sim.run_job_controller()
    sim.settle()
    assert sim.job.state == "Succeeded"
