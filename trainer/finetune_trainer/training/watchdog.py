"""Ends a run that gets nothing done any more, so that the next attempt can go on from its last checkpoint.

A data set, a file system or a GPU that hangs raises nothing: the run would hold its node for ever. A thread of its own
watches, because the main one may hang in C code, where Python handles no signal. It watches the loop, the test and how
the result is saved: loading and downloading before them take as long as they take.
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
from typing import cast

from finetune_api.exit_codes import ExitCode
from finetune_trainer.callbacks import Callback, CheckpointRecord, EvaluationRecord, StepRecord, TestRecord

LOOKS = 20
"""So many looks in a row at which nothing was done since the one before are a stall."""

STDERR = 2
"""Not the stream: whoever hangs may hold its lock."""

LAST_WORDS = 20.0
"""Seconds for stacks and report; what made the run hang may make these hang too."""

WORKER_WORDS = 1.0
"""Seconds for one worker's stack. All write to the same stream, byte by byte, so one speaks after the other."""


class Pulse(Callback):
    """Counts whatever gets done."""

    def __init__(self) -> None:
        self.done = 0

    def beat(self) -> None:
        """Something got done."""
        self.done += 1

    def on_step_end(self, record: StepRecord) -> None:
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
class Watch:
    """What a row of looks at the pulse has shown.

    Looks are counted, not time: a process that was stopped (Ctrl-Z) looks once when it goes on.
    """

    done: int = 0
    idle: int = 0

    def look(self, done: int) -> Watch:
        """The watch after one more look."""
        return Watch(done, self.idle + 1 if done == self.done else 0)

    @property
    def is_stalled(self) -> bool:
        return self.idle >= LOOKS


@contextmanager
def watching(pulse: Pulse, seconds: float, say_why: Callable[[], str]) -> Iterator[None]:
    """End the process with exit code 76 when nothing gets done for so long.

    Args:
        pulse: hears what gets done.
        seconds: never less, and at most a twentieth more.
        say_why: writes the report that outlives the process, and returns its message.
    """
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pulse, seconds, over, say_why), name="stall-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(pulse: Pulse, seconds: float, over: threading.Event, say_why: Callable[[], str]) -> None:
    watch = Watch()
    _expect_another_look(seconds)
    while not over.wait(seconds / LOOKS):
        watch = watch.look(pulse.done)
        if watch.is_stalled:
            _end(say_why)
        _expect_another_look(seconds)


def _expect_another_look(seconds: float) -> None:
    """C code that never lets go of the interpreter stops this thread too: then faulthandler ends the process, with 1.

    It knows the time and nothing else: a process that was stopped for so long (SIGSTOP, a paused container) may be
    ended too, as it goes on, and the next attempt resumes. Not under a person's hands, who may have pressed Ctrl-Z.
    """
    if not os.isatty(0):
        faulthandler.dump_traceback_later(seconds * (1 + 1 / LOOKS), exit=True, file=STDERR)


def _end(say_why: Callable[[], str]) -> None:
    faulthandler.cancel_dump_traceback_later()
    last_moment = threading.Timer(LAST_WORDS, _leave)
    last_moment.daemon = True
    last_moment.start()
    with suppress(Exception):
        _show_stacks()
    with suppress(Exception):
        os.write(STDERR, f"error: {say_why()}\n".encode())
    _leave()


def _show_stacks() -> None:
    """Those of the data workers as well."""
    faulthandler.dump_traceback(STDERR, all_threads=True)
    workers = multiprocessing.active_children()
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(cast(int, worker.pid), signal.SIGUSR1)
        time.sleep(min(WORKER_WORDS, LAST_WORDS / 2 / len(workers)))


def _leave() -> None:
    """Workers are ended last: one that hangs would stay behind, and one that is gone is an error to the loader."""
    with suppress(Exception):
        for worker in multiprocessing.active_children():
            worker.kill()
    os._exit(ExitCode.STALLED)
