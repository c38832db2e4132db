"""A run that hangs exits with code 76, stack traces and a report; time before the training loop does not count."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_api import FineTuneJob
from finetune_api.exit_codes import ExitCode
from finetune_api.status import Report
from finetune_trainer.training.watchdog import CHECKS_PER_TIMEOUT, StallDetector
from unit.trainer import tiny

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
from finetune_trainer.training import run as whole
from finetune_trainer.callbacks import Callback
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.tasks.contrastive import Contrastive

claims, out, manifest, log, hang = sys.argv[1:]
C, HOLDING_GIL = ctypes.CDLL(None), ctypes.PyDLL(None)
collate, prepare = Contrastive.collate, whole.prepare

def hanging(self, rows, processors):
    if Path(out, "hang").exists():
        {"c": C, "gil": HOLDING_GIL}[hang].sleep(600)
    return collate(self, rows, processors)

def slow(*arguments):
    time.sleep(12)
    return prepare(*arguments)

class HangAfterStepTwo(Callback):
    def on_step_end(self, record):
        if record.step == 2 and hang != "saving":
            Path(out, "hang").touch()

if hang == "saving":
    VisionTextDualEncoderModel.save_pretrained = lambda *arguments, **named: C.sleep(600)
Contrastive.collate = hanging
whole.prepare = slow
torch.set_num_threads(1)
job = FineTuneJob.model_validate_json(Path(manifest).read_text(), strict=True)
options = whole.RunOptions(
    claims=ClaimPaths(Path(claims), {"out": Path(out)}), termination_log=Path(log), stall_timeout=10.0
)
whole.run(job, options, HangAfterStepTwo())
"""
"""The data set hangs after two steps. Preparation takes longer than the timeout, which does not apply to it."""


def job(**changes: Any) -> FineTuneJob:
    return tiny.contrastive_job(**tiny.merged({"checkpoint": {"everySteps": 2}, "training": {"epochs": 4}}, changes))


def run_script(spec: FineTuneJob, claims: Path, out: Path, hang: str) -> "subprocess.CompletedProcess[str]":
    manifest = out / "job.json"
    manifest.write_text(json.dumps(spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
    arguments = [claims, out, manifest, out / "termination.log", hang]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def report(out: Path) -> Report:
    return Report.model_validate_json((out / "termination.log").read_text())


def test_data_set_that_hangs_in_c_code(claims: Path, out: Path) -> None:
    process = run_script(job(), claims, out, "c")
    assert process.returncode == ExitCode.STALLED, process.stderr
    assert "in hanging" in process.stderr, process.stderr
    assert 'File "' in process.stderr
    assert "error: no progress for 10 s after step 2: no step, evaluation batch, checkpoint or" in process.stderr
    last = report(out)
    assert last.reason == "Stalled"
    assert "raise stallTimeoutSeconds" in last.message
    assert last.progress is not None and last.progress.step == 2
    assert last.checkpoint is not None and last.checkpoint.step == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_hanging_workers_dump_their_stacks_and_are_killed(claims: Path, out: Path, workers: int) -> None:
    process = run_script(job(data={"workers": workers}), claims, out, "c")
    assert process.returncode == ExitCode.STALLED, process.stderr
    assert process.stderr.count(" in hanging\n") >= workers, process.stderr
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(out) in (process.info["cmdline"] or [])]


def test_storage_that_hangs_during_export(claims: Path, out: Path) -> None:
    process = run_script(job(), claims, out, "saving")
    assert process.returncode == ExitCode.STALLED, process.stderr
    assert "in export_model" in process.stderr
    assert report(out).reason == "Stalled"


def test_c_code_that_holds_the_gil(claims: Path, out: Path) -> None:
    process = run_script(job(), claims, out, "gil")
    assert process.returncode == ExitCode.FAILED, process.stderr
    assert "Timeout" in process.stderr
    assert "in hanging" in process.stderr, process.stderr
