"""SIGTERM and Ctrl-C request a stop: the run finishes its step, writes a checkpoint and exits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune_trainer.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Whether a stop was requested. A second Ctrl-C stops immediately."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Request a stop; a signal handler.

        Raises:
            KeyboardInterrupt: on a Ctrl-C after an earlier request.
        """
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def raise_if_requested(self) -> None:
        """End the run if a stop was requested. For everything before the first step that takes over a second.

        Raises:
            Interrupted: a stop was requested.
        """
        if self.requested:
            raise Interrupted("interrupted before the first step")


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Handle stop signals within the context, then restore the previous handlers.

    Outside the main thread, where Python does not allow signal handlers, the flag is never set.
    """
    stop = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop.request) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
