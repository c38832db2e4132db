"""A run that hangs exits with code 76, stack traces and a report; time before the training loop does not count."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api import FineTuneJob
from finetune_api.exit_codes import ExitCode
from finetune_api.status import Report
from finetune_trainer.training.watchdog import CHECKS_PER_TIMEOUT, Heartbeat, StallDetector, count_progress
from harness import forkserver
from harness.forkserver import Process
from harness.processes import wait_until
from unit.trainer import tiny

WORKERS = (1, 3)
N = CHECKS_PER_TIMEOUT


def is_stalled(*counts: int) -> bool:
    detector = StallDetector()
    for count in counts:
        detector = detector.check(count)
    return detector.is_stalled


def test_stall_after_consecutive_checks_without_progress() -> None:
    assert not is_stalled(*[0] * (N - 1))
    assert is_stalled(*[0] * N)
    assert not is_stalled(*[0] * (N - 1), 1, *[1] * (N - 1))
    assert is_stalled(*[0] * (N - 1), 1, *[1] * N)
    assert not is_stalled(*range(10 * N))


SCRIPT = """
import ctypes, sys, time
from pathlib import Path
import torch
from transformers import VisionTextDualEncoderModel
from finetune_api import FineTuneJob
from finetune_trainer.training import run as run_module
from finetune_trainer.callbacks import Callback
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.training.checkpoint import store

claims, out, manifest, log, hang, timeout = sys.argv[1:]
C, HOLDING_GIL = ctypes.CDLL(None), ctypes.PyDLL(None)
collate, prepare = Contrastive.collate, run_module.prepare

def hanging(self, rows, processors):
    if Path(out, "hang").exists():
        {"c": C, "gil": HOLDING_GIL}[hang].sleep(600)
    return collate(self, rows, processors)

def slow(*arguments):
    time.sleep(12)
    return prepare(*arguments)

class HangAfterStepTwo(Callback):
    def on_step_end(self, record):
        if record.step == 2 and hang not in ("export", "slow"):
            Path(out, "hang").touch()

def slowly(function, seconds=0.9):
    def slow_function(*arguments, **named):
        time.sleep(seconds)
        return function(*arguments, **named)
    return slow_function

if hang == "slow":
    Classification.loss = slowly(Classification.loss)
    store.save_file, store.fsync = slowly(store.save_file), slowly(store.fsync, 0.4)
if hang == "export":
    VisionTextDualEncoderModel.save_pretrained = lambda *arguments, **named: C.sleep(600)
Contrastive.collate = hanging
run_module.prepare = prepare if hang == "slow" else slow
torch.set_num_threads(1)
job = FineTuneJob.model_validate_json(Path(manifest).read_text(), strict=True)
options = run_module.RunOptions(
    claims=ClaimPaths(Path(claims), {"out": Path(out)}), termination_log=Path(log), stall_timeout=float(timeout)
)
run_module.run(job, options, HangAfterStepTwo())
"""
"""The dataset hangs after two steps. Preparation takes longer than the timeout, which does not apply to it."""


def job(**changes: Any) -> FineTuneJob:
    return tiny.contrastive_job(**tiny.merged({"checkpoint": {"everySteps": 2}, "training": {"epochs": 4}}, changes))


@dataclass
class Run:
    """A run in a process of its own."""

    out: Path
    process: Process

    def end(self) -> tuple[int, str]:
        """Wait for the end of the process. Returns its exit status and its standard error."""
        return self.process.wait(300), (self.out / "stderr").read_text()


def start(spec: FineTuneJob, claims: Path, out: Path, hang: str, timeout: float = 10) -> Run:
    manifest = out / "job.json"
    manifest.write_text(json.dumps(spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
    arguments = ["-c", SCRIPT, claims, out, manifest, out / "termination.log", hang, timeout]
    with (out / "stderr").open("w") as stderr:
        process = forkserver.start(arguments, stdout=stderr, stderr=stderr, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return Run(out, process)


@pytest.fixture(scope="module")
def runs(claims: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All runs that hang, started together: they mostly wait."""
    arguments = {"c": ("c", {}), "export": ("export", {}), "gil": ("gil", {})}
    arguments |= {f"workers-{count}": ("c", {"data": {"workers": count}}) for count in WORKERS}
    runs = {
        name: start(job(**changes), claims, tmp_path_factory.mktemp(name), hang)
        for name, (hang, changes) in arguments.items()
    }
    yield runs
    for run in runs.values():
        run.process.kill_session()


def report(out: Path) -> Report:
    return Report.model_validate_json((out / "termination.log").read_text())


def test_data_set_that_hangs_in_c_code(runs: dict[str, Run]) -> None:
    status, stderr = runs["c"].end()
    assert status == ExitCode.STALLED, stderr
    assert "in hanging" in stderr, stderr
    assert 'File "' in stderr
    assert "error: no progress for 10 s after step 2: no step, evaluation batch, checkpoint or" in stderr
    last = report(runs["c"].out)
    assert last.reason == "Stalled"
    assert "raise stallTimeoutSeconds" in last.message
    assert last.progress is not None and last.progress.step == 2
    assert last.checkpoint is not None and last.checkpoint.step == 2


@pytest.mark.parametrize("workers", WORKERS)
def test_hanging_workers_dump_their_stacks_and_are_killed(runs: dict[str, Run], workers: int) -> None:
    run = runs[f"workers-{workers}"]
    status, stderr = run.end()
    assert status == ExitCode.STALLED, stderr
    assert stderr.count(" in hanging\n") >= workers, stderr
    wait_until("the end of the workers", lambda: not run.process.members(), 10)


def test_storage_that_hangs_during_export(runs: dict[str, Run]) -> None:
    status, stderr = runs["export"].end()
    assert status == ExitCode.STALLED, stderr
    assert "in export_model" in stderr
    assert report(runs["export"].out).reason == "Stalled"


def test_c_code_that_holds_the_gil(runs: dict[str, Run]) -> None:
    status, stderr = runs["gil"].end()
    assert status == ExitCode.FAILED, stderr
    assert "Timeout" in stderr
    assert "in hanging" in stderr, stderr


def test_step_of_many_micro_batches_and_checkpoint_of_several_files_are_progress(claims: Path, tmp_path: Path) -> None:
    """Each step takes 3 s, and each checkpoint at least as long; the timeout is 2 s."""
    training = {"batchSize": 3, "microBatchSize": 1, "epochs": 1}
    spec = tiny.job("bert", "few", training=training, checkpoint={"everySteps": 1})
    tiny.write_rows(claims / "data" / "few", tiny.reviews(6))
    status, stderr = start(spec, claims, tmp_path, "slow", timeout=2).end()
    assert status == 0, stderr
    assert report(tmp_path).reason == "Succeeded"


def test_large_files_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.training.watchdog.PROGRESS_BYTES", 2**20)
    heartbeat = Heartbeat()
    before = count_progress(heartbeat)
    (tmp_path / "large").write_bytes(bytes(2**21))
    written = count_progress(heartbeat)
    assert written >= before + 2
    assert len((tmp_path / "large").read_bytes()) == 2**21
    assert count_progress(heartbeat) >= written + 2
    heartbeat.on_substep_end()
    heartbeat.on_progress("scanning data.train", 1, 2)
    assert heartbeat.count == 2
