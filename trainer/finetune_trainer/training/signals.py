"""SIGTERM and Ctrl-C ask a run to stop; it does so between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether the run was asked to stop. A second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def watch_signals() -> Iterator[Stop]:
    """Listen to the signals as long as the run goes on; only a main thread can."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
