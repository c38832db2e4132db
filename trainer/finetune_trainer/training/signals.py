"""SIGTERM, SIGINT and SIGHUP stop a run.

Before the first step there is nothing to save, and the run ends at once. Afterwards it finishes its step, writes a
checkpoint and exits.

Python runs signal handlers in the main thread, between two bytecodes: not while C code downloads or reads a file. And a
library may catch what a handler raises. A thread, which the C-level handler wakes, therefore ends the process if the
main thread does not react. Only C code that holds the GIL delays both.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REACTION_SECONDS = 0.5
"""Time for the main thread to react to a signal, and then for the exit handlers of the process."""
EXIT_HOOK_SECONDS = 0.3
NOT_STARTED = "interrupted before the first step"

_active: StopFlag | None = None
"""The flag that handles the signals of this process."""


class StopFlag:
    """Whether a stop was requested. A second Ctrl-C stops immediately."""

    def __init__(self) -> None:
        self.requested = False
        self.immediate = False
        """Whether a stop ends the run at once, because there is nothing to save yet."""
        self.exit_hooks: list[Callable[[str], None]] = []
        """Called with the message before the process is ended because its main thread does not react."""

    def request(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Request a stop; a signal handler.

        Raises:
            Interrupted: the first step has not begun.
            KeyboardInterrupt: on a Ctrl-C after an earlier request.
        """
        is_first, self.requested = not self.requested, True
        if self.immediate and is_first:
            raise Interrupted(NOT_STARTED)
        if not self.immediate and not is_first and signum == signal.SIGINT:
            raise KeyboardInterrupt

    def raise_if_requested(self) -> None:
        """End the run if a stop was requested. For everything before the first step that takes over a second.

        Raises:
            Interrupted: a stop was requested.
        """
        if self.requested:
            raise Interrupted(NOT_STARTED)

    def defer(self) -> None:
        """Let a stop wait for the end of a step from now on.

        Raises:
            Interrupted: a stop was requested already.
        """
        self.raise_if_requested()
        self.immediate = False


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Handle stop signals within the context, then restore the previous handlers.

    Contexts can be nested; the outermost handles the signals. SIGHUP stays ignored if it is, as with nohup. Outside the
    main thread, where Python does not allow signal handlers, the flag is never set.

    Raises:
        Interrupted: a stop was requested before the first step, whatever exception it caused.
    """
    with _handling() as stop:
        try:
            yield stop
        except Exception as error:
            if stop.requested and stop.immediate and not isinstance(error, Interrupted):
                raise Interrupted(NOT_STARTED) from error
            raise


@contextmanager
def _handling() -> Iterator[StopFlag]:
    global _active  # noqa: PLW0603 - signal handlers belong to the process, too
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or StopFlag()
        return
    stop = _active = StopFlag()
    stop.immediate = True
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    try:
        with _watching(stop):
            previous = {number: signal.signal(number, stop.request) for number in STOP_SIGNALS if number not in ignored}
            try:
                yield stop
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)
    finally:
        _active = None


@contextmanager
def _watching(stop: StopFlag) -> Iterator[None]:
    """Run the thread that ends the process if its main thread does not react to a signal."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    closed = threading.Event()
    thread = threading.Thread(target=_watch, args=(stop, read_end, closed), name="stop-signals", daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        closed.set()
        os.write(write_end, b"\0")
        thread.join()
        os.close(read_end)
        os.close(write_end)


def _watch(stop: StopFlag, read_end: int, closed: threading.Event) -> None:
    while not closed.is_set():
        (number,) = os.read(read_end, 1)
        if number in STOP_SIGNALS and stop.immediate and not closed.wait(REACTION_SECONDS) and stop.immediate:
            _end_process(stop)


def _end_process(stop: StopFlag) -> None:
    exit_within(EXIT_HOOK_SECONDS)
    for hook in stop.exit_hooks:
        with suppress(Exception):
            hook(NOT_STARTED)
    _exit()


def exit_within(seconds: float) -> None:
    """End the process as interrupted after a time, unless it ends earlier by itself.

    Exit handlers wait for other threads, such as downloads, for as long as those take.
    """
    timer = threading.Timer(seconds, _exit)
    timer.daemon = True
    timer.start()


def _exit() -> None:
    with suppress(Exception):
        kill_children()
    os._exit(ExitCode.INTERRUPTED)


def kill_children() -> None:
    """Kill the child processes with their own children, but not Python's resource tracker, which cleans up after us."""
    processes = {process.pid for process in multiprocessing.active_children()} | set(_descendants(os.getpid()))
    for pid in filter(None, processes):
        with suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _descendants(child)


def _reset_in_child() -> None:
    """In a forked child, signals must neither raise `Interrupted` nor reach the watcher of the parent."""
    global _active  # noqa: PLW0603
    if _active is None:
        return
    _active = None
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_reset_in_child)
