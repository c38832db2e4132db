"""Terminates a run that makes no progress, so that the next attempt resumes from its last checkpoint.

A data loader, a file system or a GPU that hangs raises no exception, and the run would occupy its node forever. The
watchdog runs in a separate thread, because the main thread may hang in C code, where Python handles no signals. It
covers training, evaluation and export; loading and downloading before them may take any time. It is our own because
faulthandler alone, which it uses too, can neither write a report nor stop data workers.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from finetune_api.exit_codes import ExitCode
from finetune_trainer.callbacks import Callback, CheckpointRecord, EvaluationRecord, StepRecord, TestRecord

CHECKS_PER_TIMEOUT = 20
"""Number of consecutive checks without progress after which a run is stalled."""

PROGRESS_BYTES = 2**26
"""Bytes read or written that are a unit of progress; far more than a run that hangs writes to its log."""

STDERR_FD = 2
"""The file descriptor, because the thread that hangs may hold the lock of sys.stderr."""

EXIT_TIMEOUT = 20.0
"""Seconds for stack traces and report, which may hang for the same reason as the run."""

WORKER_STACK_SECONDS = 1.0
"""Seconds for the stack trace of one worker. They write to the same stream, so they take turns."""


class Heartbeat(Callback):
    """Counts units of progress: micro-batches, steps, evaluation batches, checkpoints and parts of the export."""

    def __init__(self) -> None:
        self.count = 0

    def beat(self) -> None:
        """Record a unit of progress."""
        self.count += 1

    def on_step_end(self, record: StepRecord) -> None:
        self.beat()

    def on_substep_end(self) -> None:
        self.beat()

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self.beat()

    def on_prediction_step(self, done: int, total: int) -> None:
        self.beat()

    def on_evaluate(self, record: EvaluationRecord) -> None:
        self.beat()

    def on_test(self, record: TestRecord) -> None:
        self.beat()

    def on_save(self, record: CheckpointRecord) -> None:
        self.beat()


@dataclass(frozen=True)
class StallDetector:
    """Decides from successive checks of a heartbeat whether a run is stalled.

    It counts checks instead of time: a process that was suspended (Ctrl-Z) makes one check when it continues.

    Args:
        count: the count of the heartbeat at the last check.
        idle_checks: consecutive checks without progress.
    """

    count: int = 0
    idle_checks: int = 0

    def check(self, count: int) -> StallDetector:
        """The detector after another check."""
        return StallDetector(count, self.idle_checks + 1 if count == self.count else 0)

    @property
    def is_stalled(self) -> bool:
        return self.idle_checks >= CHECKS_PER_TIMEOUT


def bytes_transferred() -> int:
    """Bytes that this process has read from and written to files; 0 where the system does not count them."""
    try:
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counters["rchar"]) + int(counters["wchar"])
    except (OSError, ValueError, KeyError):
        return 0


def count_progress(heartbeat: Heartbeat) -> int:
    """Units of progress: those of the heartbeat, and parts of large files, which may take longer than the timeout."""
    return heartbeat.count + bytes_transferred() // PROGRESS_BYTES


@contextmanager
def watchdog(heartbeat: Heartbeat, timeout: float, on_stall: Callable[[], str]) -> Iterator[None]:
    """Exit the process with code 76 when there is no progress within the context.

    Args:
        heartbeat: receives the progress.
        timeout: seconds without progress; exceeded by at most a twentieth.
        on_stall: writes the report and returns its message; called once, before the process exits.
    """
    stopped = threading.Event()
    arguments = (heartbeat, timeout, stopped, on_stall)
    thread = threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(heartbeat: Heartbeat, timeout: float, stopped: threading.Event, on_stall: Callable[[], str]) -> None:
    detector = StallDetector()
    _arm_faulthandler(timeout)
    while not stopped.wait(timeout / CHECKS_PER_TIMEOUT):
        detector = detector.check(count_progress(heartbeat))
        if detector.is_stalled:
            _terminate(on_stall)
        _arm_faulthandler(timeout)


def _arm_faulthandler(timeout: float) -> None:
    """Have faulthandler exit the process with code 1 if there is no further check.

    C code that never releases the GIL stops this thread too. faulthandler only measures time: it may also exit a
    process that was suspended for longer than the timeout (SIGSTOP, a paused container) when it continues, and the next
    attempt resumes. Not on a terminal, where the user may have pressed Ctrl-Z.
    """
    if not os.isatty(0):
        faulthandler.dump_traceback_later(timeout * (1 + 1 / CHECKS_PER_TIMEOUT), exit=True, file=STDERR_FD)


def _terminate(on_stall: Callable[[], str]) -> None:
    faulthandler.cancel_dump_traceback_later()
    deadline = threading.Timer(EXIT_TIMEOUT, _exit)
    deadline.daemon = True
    deadline.start()
    with suppress(Exception):
        _dump_stacks()
    with suppress(Exception):
        os.write(STDERR_FD, f"error: {on_stall()}\n".encode())
    _exit()


def _dump_stacks() -> None:
    """Print the stack traces of all threads, and of the data workers, which dump theirs on SIGUSR1."""
    faulthandler.dump_traceback(STDERR_FD, all_threads=True)
    workers = multiprocessing.active_children()
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(cast(int, worker.pid), signal.SIGUSR1)
        time.sleep(min(WORKER_STACK_SECONDS, EXIT_TIMEOUT / 2 / len(workers)))


def _exit() -> None:
    """Kill the workers last: a hanging one would outlive the process, and a dead one makes the data loader raise."""
    with suppress(Exception):
        for worker in multiprocessing.active_children():
            worker.kill()
    os._exit(ExitCode.STALLED)
