"""`spec.ttlSecondsAfterFinished` deletes what a finished job leaves, but never the job."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from finetune_operator.core.changes import update_status
from finetune_operator.core.children import Children, LeftoverConfigMap
from finetune_operator.core.reconcile import reconcile
from unit.operator.simulation import START, Simulation, make_attempt_job, make_pod, running


def finished(**spec: Any) -> Simulation:
    sim = Simulation(**spec)
    sim.settle()
    sim.set_suspend(True)
    sim.settle()
    sim.exit(75)
    sim.settle()
    sim.set_suspend(False)
    sim.settle()
    sim.exit(0)
    sim.run_job_controller()
    sim.settle()
    assert sim.job.state == "Succeeded"
    return sim


def test_leftovers_are_deleted_after_the_ttl_and_the_job_stays() -> None:
    sim = finished(ttlSecondsAfterFinished=60)
    assert sim.attempt_jobs and sim.config_maps == {"job-a1", "job-a2"} and sim.reconcile().requeue_after == 60
    sim.wait(60)
    sim.settle()
    assert not sim.attempt_jobs and not sim.config_maps and sim.job.status.cleanup_time == sim.now
    assert sim.job.state == "Succeeded"
    assert not sim.reconcile().lookup, "a finished cleanup is not repeated"


def test_leftovers_stay_until_a_ttl_is_set() -> None:
    sim = finished()
    sim.wait(10_000)
    sim.settle()
    assert sim.attempt_jobs and sim.config_maps
    sim.set_spec(ttlSecondsAfterFinished=0)
    sim.settle()
    assert not sim.attempt_jobs and not sim.config_maps


def test_objects_of_another_owner_are_not_cleaned_up() -> None:
    sim = finished(ttlSecondsAfterFinished=0)
    sim.job = replace(sim.job, status=update_status(sim.job.status, cleanup_time=None))
    foreign = Children(
        jobs=(make_attempt_job(1, owner_uid="another"),),
        leftover_config_maps=(LeftoverConfigMap("job-a1", "uid", "another"),),
    )
    actions = reconcile(sim.job, foreign, sim.now, sim.config)
    assert not actions.deletes and actions.status and actions.status.cleanup_time


def test_cleanup_waits_for_own_pods_only() -> None:
    sim = finished(ttlSecondsAfterFinished=0)
    sim.job = replace(sim.job, status=update_status(sim.job.status, cleanup_time=None))
    own = Children(pods=(running(make_pod(2, created_at=START)),), leftover_config_maps=())
    assert not reconcile(sim.job, own, sim.now, sim.config).status
    earlier = Children(pods=(running(make_pod(1, created_at=START - timedelta(days=1))),), leftover_config_maps=())
    actions = reconcile(sim.job, earlier, sim.now, sim.config)
    assert actions.status and actions.status.cleanup_time


def test_number_of_leftovers_looked_up_is_limited() -> None:
    sim = finished(ttlSecondsAfterFinished=0)
    status = update_status(sim.job.status, cleanup_time=None, attempt=100_000)
    actions = reconcile(replace(sim.job, status=status), Children(), sim.now, sim.config)
    assert actions.lookup
    names = actions.lookup.leftover_config_maps
    assert names[-1] == "job-a100000" and len(names) == 500
