"""A stop before the first step ends the process with code 75 within about a second, whatever it is doing."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import Interrupted
from finetune_trainer.training.signals import STOP_SIGNALS, StopFlag, stop_on_signals
from harness import forkserver
from harness.forkserver import Process
from harness.processes import wait_until

SCRIPT = """
import ctypes, multiprocessing, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from finetune_trainer.cli import main
from finetune_trainer.training import run as run_module

work, folder = sys.argv[1], Path(sys.argv[2])

def started():
    Path(folder, "started").touch()

def c_code(*_):
    started()
    ctypes.CDLL(None).sleep(600)

def swallow(*_):
    started()
    while True:
        try:
            time.sleep(600)
        except Exception:
            pass

def wrap(*_):
    started()
    try:
        time.sleep(600)
    except Exception as error:
        raise RuntimeError("Failed to import") from error

def thread_pool(*_):
    with ThreadPoolExecutor(2) as pool:
        pool.submit(time.sleep, 600)
        started()
        time.sleep(600)

def workers(*_):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        task = pool.apply_async(time.sleep, (600,))
        pool.apply(int)
        started()
        task.get()

def terminated_workers(*_):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.apply(int)
    started()
    raise ZeroDivisionError("nothing stopped the run")

run_module.prepare = globals()[work]
sys.argv = ["finetune", "run", "job.yaml", "--plain", "--termination-log", "report"]
main.main()
"""
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model: {source: pvc://models/none}
  task: SequenceClassification
  data: {train: {source: pvc://data/none}}
  training: {epochs: 1, batchSize: 2}
  modules: [{name: all, parameters: ["*"], optimizer: {type: SGD, learningRate: 1}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill_session()


def start(folder: Path, work: str, processes: list[Process]) -> Process:
    with (folder / "log").open("w") as log:
        process = forkserver.start(["-c", SCRIPT, work, folder], stdout=log, stderr=log, cwd=folder)
    processes.append(process)
    wait_until("the work", lambda: (folder / "started").exists() or process.poll() is not None, 120)
    return process


def end(process: Process, number: signal.Signals) -> tuple[int, float]:
    """Send a signal. Returns the exit status, and the seconds until the end."""
    begin = time.monotonic()
    process.send_signal(number)
    return process.wait(60), time.monotonic() - begin


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_c_code_is_stopped_by_each_signal(folder: Path, processes: list[Process], number: signal.Signals) -> None:
    process = start(folder, "c_code", processes)
    status, seconds = end(process, number)
    log = (folder / "log").read_text()
    assert status == ExitCode.INTERRUPTED, log
    assert seconds < 3
    assert "stopped: interrupted before the first step" in log
    assert "Traceback" not in log
    assert json.loads((folder / "report").read_text())["reason"] == "Interrupted"


@pytest.mark.parametrize("work", ["swallow", "wrap", "thread_pool", "workers"])
def test_library_code_is_stopped_with_its_children(folder: Path, processes: list[Process], work: str) -> None:
    process = start(folder, work, processes)
    status, seconds = end(process, signal.SIGTERM)
    log = (folder / "log").read_text()
    assert status == ExitCode.INTERRUPTED, log
    assert seconds < 3
    assert log.count("stopped: interrupted before the first step") == 1, log
    assert json.loads((folder / "report").read_text())["reason"] == "Interrupted"
    wait_until("the end of the children", lambda: not process.members(), 5)


def test_signal_to_a_child_does_not_stop_the_run(folder: Path, processes: list[Process]) -> None:
    process = start(folder, "terminated_workers", processes)
    assert process.wait(60) == ExitCode.FAILED
    assert "nothing stopped the run" in (folder / "log").read_text()


def test_ignored_hangup_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_handlers_are_restored_and_contexts_share_the_flag() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_on_signals() as outer, stop_on_signals() as inner:
        assert inner is outer
        assert outer.immediate
        outer.defer()
        signal.raise_signal(signal.SIGHUP)
        assert outer.requested
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_any_exception_after_a_request_is_the_interruption() -> None:
    def stopped() -> None:
        with stop_on_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            except Interrupted as error:
                raise ImportError("could not import") from error

    with pytest.raises(Interrupted, match="before the first step"):
        stopped()


def test_second_ctrl_c_stops_immediately_after_the_first_step_only() -> None:
    stop = StopFlag()
    stop.request(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.request(signal.SIGINT)
    early = StopFlag()
    early.immediate = True
    with pytest.raises(Interrupted):
        early.request(signal.SIGINT)
    early.request(signal.SIGINT)
    with pytest.raises(Interrupted):
        early.raise_if_requested()
