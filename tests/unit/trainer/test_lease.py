"""A destination has one writer at a time: a lease file, without file locks and without comparing clocks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api import FineTuneJob
from finetune_trainer.errors import Interrupted, RunError, UserError
from finetune_trainer.training import lease as lease_module
from finetune_trainer.training.lease import LEASE_FILE, Lease, LeaseLock
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import AfterStep, Recorder

ELSEWHERE = "another-node/boot/pid:[1]"


@pytest.fixture(autouse=True)
def no_settle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "SETTLE_TIME", 0.01)


def lock(folder: Path, job: str = "one", attempt: int = 1, **changes: Any) -> LeaseLock:
    timing = {"duration": 0.3, "renew_interval": 0.02}
    lease = replace(Lease.create(job, f"run-of-{job}", attempt), **changes)
    return LeaseLock(folder, lease, **timing)


def acquire(lock: LeaseLock) -> list[str]:
    messages: list[str] = []
    lock.acquire(messages.append)
    return messages


def write(folder: Path, lease: Lease) -> None:
    (folder / LEASE_FILE).write_text(lease.to_json())


def test_second_job_is_refused_while_the_first_is_running(tmp_path: Path) -> None:
    first = lock(tmp_path)
    acquire(first)
    with pytest.raises(
        UserError, match=r"in use by job 'one' \(attempt 1, process \d+ on .*another destination"
    ) as raised:
        acquire(lock(tmp_path, "two"))
    assert raised.value.exit_code == 2
    first.check()
    first.release()
    assert not list(tmp_path.iterdir())
    second = lock(tmp_path, "two")
    assert acquire(second) == []
    second.release()


def test_holder_on_another_node_that_renews_is_running(tmp_path: Path) -> None:
    first = lock(tmp_path, host=ELSEWHERE)
    acquire(first)
    messages: list[str] = []
    with pytest.raises(UserError, match="in use by job 'one'"):
        lock(tmp_path, "two").acquire(messages.append)
    assert "waiting up to 0.3 s to see whether it is running" in messages[0]
    first.release()


@pytest.mark.parametrize("renew_time", ["1999-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
def test_holder_on_another_node_that_does_not_renew_is_replaced_whatever_its_clock(
    renew_time: str, tmp_path: Path
) -> None:
    write(tmp_path, replace(lock(tmp_path, host=ELSEWHERE).lease, renew_time=renew_time))
    second = lock(tmp_path, "two")
    start = time.monotonic()
    acquire(second)
    assert time.monotonic() - start >= 0.3
    second.check()
    second.release()


def test_replaced_holder_ends_when_it_comes_back(tmp_path: Path) -> None:
    """It hung for longer than the duration: its renewals stop, then continue."""
    first, second = lock(tmp_path, host=ELSEWHERE), lock(tmp_path, "two")
    write(tmp_path, first.lease)
    acquire(second)
    content = (tmp_path / LEASE_FILE).read_text()
    first._renew(7)
    assert Lease.parse((tmp_path / LEASE_FILE).read_text()).holder == second.lease.holder  # type: ignore[union-attr]
    with pytest.raises(
        UserError, match=r"cannot write to .*: job 'two' .* has taken over; use another destination"
    ) as raised:
        first.check()
    assert raised.value.exit_code == 2
    first.release()
    assert (tmp_path / LEASE_FILE).exists(), f"it deletes only its own: {content}"
    second.release()


def test_renewal_never_reaches_a_file_that_replaced_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder was stopped between reading and writing the file, and replaced meanwhile."""
    first, second = lock(tmp_path, host=ELSEWHERE), lock(tmp_path, "two")
    write(tmp_path, first.lease)

    def take_over(text: str | None) -> bool:
        (tmp_path / "new").write_text(second.lease.to_json())
        (tmp_path / "new").replace(tmp_path / LEASE_FILE)
        return True

    monkeypatch.setattr(first, "_is_mine", take_over)
    first._renew(1)
    assert (tmp_path / LEASE_FILE).read_text() == second.lease.to_json()


def test_newer_attempt_of_the_same_run_takes_over_at_once(tmp_path: Path) -> None:
    older, newer = lock(tmp_path, host=ELSEWHERE), lock(tmp_path, attempt=2)
    acquire(older)
    assert acquire(newer) == []
    with pytest.raises(UserError, match=r"attempt 1 cannot write to .*: attempt 2 has taken over"):
        older.check()
    with pytest.raises(RunError, match="attempt 1 cannot continue: attempt 2 has started"):
        acquire(lock(tmp_path, attempt=1))
    older.release()
    newer.check()
    newer.release()


def test_lease_of_a_process_that_was_killed_is_replaced_at_once(tmp_path: Path) -> None:
    """Also by the same attempt of the same job: the command was repeated."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = lease_module._process(process.pid)
    process.kill()
    process.wait()
    for job in ("one", "two"):
        write(tmp_path, lock(tmp_path, process=identity).lease)
        again = lock(tmp_path, job)
        assert acquire(again) == []
        again.release()


def test_process_id_that_was_reused_is_another_process(tmp_path: Path) -> None:
    write(tmp_path, lock(tmp_path, process=f"{os.getpid()}@1").lease)
    again = lock(tmp_path)
    assert acquire(again) == []
    again.release()


def test_same_run_twice_at_the_same_time_is_refused(tmp_path: Path) -> None:
    first = lock(tmp_path)
    acquire(first)
    with pytest.raises(UserError, match="is in use by job 'one'"):
        acquire(lock(tmp_path))
    first.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"job": "x"}', "\0\0"])
def test_unreadable_lease_is_replaced_only_after_the_duration(content: str, tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).write_text(content)
    second = lock(tmp_path)
    assert "an unknown process" in acquire(second)[0]
    second.release()


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    first = lock(tmp_path)
    acquire(first)
    with pytest.raises(UserError, match="in use"):
        acquire(lock(tmp_path, "two"))
    first.release()


def test_of_many_contenders_for_a_stale_lease_at_most_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "SETTLE_TIME", 0.2)  # far shorter than the duration, as in production
    write(tmp_path, lock(tmp_path, "stale", host=ELSEWHERE).lease)
    contenders = [lock(tmp_path, f"job-{number}", host=f"node-{number}/b/p") for number in range(8)]
    for contender in contenders:
        contender.duration = 1.0
    held: list[LeaseLock] = []

    def contend(contender: LeaseLock) -> None:
        try:
            acquire(contender)
            contender.check()
            held.append(contender)
        except UserError:
            pass

    threads = [threading.Thread(target=contend, args=(it,)) for it in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    held[0].check()
    for contender in contenders:
        contender.release()


def test_deleted_lease_is_lost(tmp_path: Path) -> None:
    first = lock(tmp_path)
    acquire(first)
    (tmp_path / LEASE_FILE).unlink()
    with pytest.raises(UserError, match="was deleted or replaced"):
        first.check()
    first.release()


def test_waiting_can_be_interrupted(tmp_path: Path) -> None:
    write(tmp_path, lock(tmp_path, host=ELSEWHERE).lease)

    def stop() -> None:
        raise Interrupted("interrupted before the first step")

    with pytest.raises(Interrupted):
        lock(tmp_path, "two").acquire(lambda text: None, stop)
    assert Lease.parse((tmp_path / LEASE_FILE).read_text()).job == "one"  # type: ignore[union-attr]


def test_destination_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(RunError, match=r"output.destination: cannot write .*Read-only file system"):
        acquire(lock(tmp_path))


def test_full_disk_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"output.destination: cannot write .*No space left on device"):
        acquire(lock(tmp_path))
    assert not list(tmp_path.iterdir())


# Runs ------------------------------------------------------------------------------------------------------------


def job(**changes: Any) -> FineTuneJob:
    return tiny.contrastive_job(**tiny.merged({"checkpoint": {"everySteps": 2}}, changes))


def go(spec: FineTuneJob, claims: Path, out: Path, recorder: Recorder | None = None) -> Recorder:
    recorder = recorder or Recorder()
    run(spec, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    return recorder


@pytest.mark.parametrize("if_exists", ["Fail", "Overwrite"])
def test_two_jobs_with_one_destination(if_exists: str, claims: Path, out: Path) -> None:
    output = {"ifExists": if_exists}

    def start_other() -> None:
        with pytest.raises(UserError, match="is in use by job 'first'"):
            go(job(name="second", output=output, training={"seed": 1}), claims, out)

    first = go(job(name="first", output=output), claims, out, AfterStep(3, start_other))
    assert first.report is not None and first.report.reason == "Succeeded"
    assert json.loads((out / "result" / "run.json").read_text())["name"] == "first"
    assert not (out / "result" / LEASE_FILE).exists()
    assert not (out / "result" / ".checkpoints").exists()


def test_run_that_lost_its_destination_replaces_nothing(claims: Path, out: Path) -> None:
    def lose() -> None:
        other = Lease.create("other", "local-other", 1)
        (out / "result" / "new").write_text(other.to_json())
        (out / "result" / "new").replace(out / "result" / LEASE_FILE)

    with pytest.raises(UserError, match=r"job 'other' .* has taken over") as raised:
        go(job(), claims, out, AfterStep(5, lose))
    assert raised.value.exit_code == 2
    assert not (out / "result" / "run.json").exists()
    assert not (out / "result" / "model.safetensors").exists()


def test_run_that_lost_its_destination_while_exporting_replaces_nothing(claims: Path, out: Path) -> None:
    class LoseAtTheEnd(Recorder):
        def on_message(self, text: str) -> None:
            if text.startswith("saving the weights"):
                (out / "result" / LEASE_FILE).unlink()

    with pytest.raises(UserError, match="was deleted or replaced"):
        go(job(), claims, out, LoseAtTheEnd())
    assert not (out / "result" / "config.json").exists()


class CrashError(Exception):
    pass


def crash() -> None:
    raise CrashError


def test_lease_is_released_after_a_crash(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), claims, out, AfterStep(3, crash))
    assert not (out / "result" / LEASE_FILE).exists()


@pytest.mark.parametrize("step", [0, 3])
def test_lease_is_released_after_sigterm(step: int, claims: Path, out: Path) -> None:
    def terminate() -> None:
        signal.raise_signal(signal.SIGTERM)

    class TerminateEarly(Recorder):
        def on_message(self, text: str) -> None:
            terminate()

    with pytest.raises(Interrupted):
        go(job(), claims, out, AfterStep(step, terminate) if step else TerminateEarly())
    assert not (out / "result" / LEASE_FILE).exists()


def test_invalid_job_releases_the_lease(claims: Path, out: Path) -> None:
    with pytest.raises(UserError):
        go(job(data={"train": {"source": "pvc://data/nothing"}}), claims, out)
    assert not (out / "result" / LEASE_FILE).exists()
