"""Standard output and error that never block or end a run.

A pipe that is not read, a terminal that is gone, or a full disk under the log would make `print` wait or raise. During
a run both streams are therefore written by a thread, from a bounded queue. What does not fit is dropped and counted.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

import typer

from finetune_api.exit_codes import ExitCode

MAX_QUEUED_BYTES = 1 << 20
DRAIN_SECONDS = 2.0
"""Time at the end of a run for output that is still in the queue."""
INTERRUPTED_DRAIN_SECONDS = 0.3
GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET}
"""Errors of a stream that nothing reads any more."""
ATOMIC_BYTES = 4096
"""What can be written to a pipe that is ready without blocking; PIPE_BUF on Linux."""


class _OutputStream(io.RawIOBase):
    """A binary stream for output to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


class QueuedOutput(_OutputStream):
    """A binary stream whose writes are queued, and done by a thread.

    In a forked child, which has no such thread, bytes are written directly if that does not block, else dropped.

    Args:
        descriptor: the file descriptor of the stream.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._process = os.getpid()
        self._queue: deque[tuple[int, bytes]] = deque()
        self._num_bytes = self._dropped_lines = 0
        self._is_gone = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write_queued, name="output", daemon=True).start()

    def write(self, data: object) -> int:
        """Queue bytes. Never blocks and never fails."""
        return self.write_to(self._descriptor, bytes(data))  # type: ignore[call-overload]

    def write_to(self, descriptor: int, data: bytes) -> int:
        """Queue bytes for a descriptor of the same file."""
        if os.getpid() != self._process:
            _write_if_ready(descriptor, data)
            return len(data)
        with self._changed:
            if self._is_gone or (self._queue and self._num_bytes + len(data) > MAX_QUEUED_BYTES):
                self._dropped_lines += data.count(b"\n")
            else:
                self._queue.append((descriptor, data))
                self._num_bytes += len(data)
                self._changed.notify_all()
        return len(data)

    def drain(self, seconds: float) -> bool:
        """Wait until everything is written. Returns whether it was."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_gone or not self._num_bytes, seconds)

    def _write_queued(self) -> None:
        while not self._is_gone:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
                descriptor, data = self._queue.popleft()
                note = self._take_dropped_note() if not self._queue else b""
            self._is_gone = not _write_all(descriptor, data + note)
            with self._changed:
                self._num_bytes -= len(data)
                self._changed.notify_all()

    def _take_dropped_note(self) -> bytes:
        dropped, self._dropped_lines = self._dropped_lines, 0
        return b"[%d lines of output were dropped: they were not read in time]\n" % dropped if dropped else b""


def _write_all(descriptor: int, data: bytes) -> bool:
    """Write bytes, however long that takes. On a full disk they are dropped. Returns whether there is a reader."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            time.sleep(0.05)  # whoever shares the pipe made it non-blocking
        except OSError as error:
            return error.errno not in GONE
    return True


def _write_if_ready(descriptor: int, data: bytes) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    try:
        for start in range(0, len(data), ATOMIC_BYTES):
            if not any(event & select.POLLOUT for _, event in poll.poll(0)):
                return
            os.write(descriptor, data[start : start + ATOMIC_BYTES])
    except OSError:
        return


class _SharedOutput(_OutputStream):
    """Standard error that goes to the same file as standard output: one queue keeps the order of both."""

    def __init__(self, output: QueuedOutput, descriptor: int) -> None:
        super().__init__(descriptor)
        self._output = output

    def write(self, data: object) -> int:
        return self._output.write_to(self._descriptor, bytes(data))  # type: ignore[call-overload]


def open_standard_streams() -> None:
    """Open the null device for each standard stream that is closed, so that no other file takes its descriptor."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


_outputs: list[QueuedOutput] = []
"""The queues of this process."""


def drain_output(seconds: float = DRAIN_SECONDS) -> bool:
    """Wait until the queued output is written. Returns whether it was."""
    deadline = time.monotonic() + seconds
    drained = [output.drain(max(0.0, deadline - time.monotonic())) for output in _outputs]
    return all(drained)


@contextmanager
def queued_output() -> Iterator[None]:
    """Queue all output of Python code within the context, that of libraries too.

    Nothing changes where another program has replaced the streams. If output could not be written at the end, the queue
    stays in place: writing to the stream would block the exit of the process.
    """
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        yield
        return
    stdout, stderr = cast(TextIO, sys.stdout), cast(TextIO, sys.stderr)  # see open_standard_streams
    stdout.flush()
    _outputs[:] = [QueuedOutput(stdout.fileno())]
    error_output: io.RawIOBase = _SharedOutput(_outputs[0], stderr.fileno())
    if not os.path.sameopenfile(stdout.fileno(), stderr.fileno()):
        _outputs.append(queue := QueuedOutput(stderr.fileno()))
        error_output = queue
    sys.stdout, sys.stderr = _as_text(_outputs[0], stdout), _as_text(error_output, stderr)
    seconds = DRAIN_SECONDS
    try:
        yield
    except typer.Exit as end:
        seconds = INTERRUPTED_DRAIN_SECONDS if end.exit_code == ExitCode.INTERRUPTED else seconds
        raise
    finally:
        if drain_output(seconds):
            sys.stdout, sys.stderr = stdout, stderr


def _as_text(output: io.RawIOBase, stream: TextIO) -> TextIO:
    return io.TextIOWrapper(output, stream.encoding, errors="replace", write_through=True)  # type: ignore[type-var]
