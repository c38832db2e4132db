"""A run that hangs is ended with 76, the stacks and a report, and only by the loop is it judged."""

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
from finetune_trainer.training.watchdog import LOOKS, Watch
from harness import forkserver
from harness.forkserver import Process
from harness.processes import wait_until
from unit.trainer import tiny

WORKERS = (1, 3)


def watched(*done: int) -> Watch:
    watch = Watch()
    for count in done:
        watch = watch.look(count)
    return watch


def test_it_takes_so_many_idle_looks_in_a_row() -> None:
    assert not watched(*[0] * (LOOKS - 1)).is_stalled
    assert watched(*[0] * LOOKS).is_stalled
    assert not watched(*[0] * (LOOKS - 1), 1, *[1] * (LOOKS - 1)).is_stalled
    assert watched(*[0] * (LOOKS - 1), 1, *[1] * LOOKS).is_stalled
    assert not watched(*range(10 * LOOKS)).is_stalled


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
C, HOLDING = ctypes.CDLL(None), ctypes.PyDLL(None)
collate, prepare = Contrastive.collate, whole.prepare

def hanging(self, rows, processors):
    if Path(out, "hang").exists():
        {"c": C, "held": HOLDING}[hang].sleep(600)
    return collate(self, rows, processors)

def slow(*arguments):
    time.sleep(12)
    return prepare(*arguments)

class Switch(Callback):
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
whole.run(job, options, Switch())
"""
"""Once two steps are done, the data set hangs. Before the loop it takes longer than the timeout, which is none."""


def job(**changes: Any) -> FineTuneJob:
    return tiny.contrastive_job(**tiny.merged({"checkpoint": {"everySteps": 2}, "training": {"epochs": 4}}, changes))


@dataclass
class Run:
    """A run in a process of its own."""

    out: Path
    process: Process

    def end(self) -> tuple[int, str]:
        """Wait for its end: the exit status, and what it wrote to its standard error."""
        return self.process.wait(300), (self.out / "stderr").read_text()


def start(spec: FineTuneJob, claims: Path, out: Path, hang: str) -> Run:
    manifest = out / "job.json"
    manifest.write_text(json.dumps(spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
    arguments = ["-c", SCRIPT, claims, out, manifest, out / "termination.log", hang]
    with (out / "stderr").open("w") as stderr:
        process = forkserver.start(arguments, stdout=stderr, stderr=stderr, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return Run(out, process)


@pytest.fixture(scope="module")
def runs(claims: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Every run that hangs. They are mostly asleep, so they are started together."""
    wanted = {"c": ("c", {}), "saving": ("saving", {}), "held": ("held", {})}
    wanted |= {f"workers-{count}": ("c", {"data": {"workers": count}}) for count in WORKERS}
    started = {
        name: start(job(**changes), claims, tmp_path_factory.mktemp(name), hang)
        for name, (hang, changes) in wanted.items()
    }
    yield started
    for run in started.values():
        run.process.kill_session()


def report(out: Path) -> Report:
    return Report.model_validate_json((out / "termination.log").read_text())


def test_a_data_set_that_hangs_in_c_code_ends_the_run(runs: dict[str, Run]) -> None:
    status, stderr = runs["c"].end()
    assert status == ExitCode.STALLED, stderr
    assert "in hanging" in stderr, stderr
    assert 'File "' in stderr
    assert "error: nothing got done for 10 s after step 2: no step, evaluation batch, checkpoint or" in stderr
    last = report(runs["c"].out)
    assert last.reason == "Stalled"
    assert "raise stallTimeoutSeconds" in last.message
    assert last.progress is not None and last.progress.step == 2
    assert last.checkpoint is not None and last.checkpoint.step == 2


@pytest.mark.parametrize("workers", WORKERS)
def test_workers_that_hang_show_their_stacks_and_do_not_stay_behind(runs: dict[str, Run], workers: int) -> None:
    run = runs[f"workers-{workers}"]
    status, stderr = run.end()
    assert status == ExitCode.STALLED, stderr
    assert stderr.count(" in hanging\n") >= workers, stderr
    wait_until("the end of the workers", lambda: not run.process.members(), 10)


def test_a_storage_that_hangs_while_the_result_is_saved_ends_the_run(runs: dict[str, Run]) -> None:
    status, stderr = runs["saving"].end()
    assert status == ExitCode.STALLED, stderr
    assert "in publish" in stderr
    assert report(runs["saving"].out).reason == "Stalled"


def test_c_code_that_never_lets_python_run_ends_the_run_too(runs: dict[str, Run]) -> None:
    status, stderr = runs["held"].end()
    assert status == ExitCode.FAILED, stderr
    assert "Timeout" in stderr
    assert "in hanging" in stderr, stderr
