"""Runs the components of a cluster as child processes: starts them, restarts those that exit, and kills them.

The kernel kills each child process when its parent dies for any reason (PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

PR_SET_PDEATHSIG = 1
LOG_TAIL_CHARS = 2000
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Command:
    """A long-running program; `name` is the name of its log file and its PID file."""

    name: str
    argv: tuple[str, ...]


class Processes:
    """The child processes of one cluster, with a log file and a PID file for each."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "logs"
        self._pids = folder / "pids"
        self._logs.mkdir(exist_ok=True)
        self._pids.mkdir(exist_ok=True)
        self._running: dict[int, Command] = {}

    def start(self, command: Command) -> int:
        """Start a program in the background and return its PID."""
        with (self._logs / f"{command.name}.log").open("ab") as log:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=without_proxies(),
                start_new_session=True,
                # Safe: the only other thread waits in a system call and holds no locks.
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        self._running[process.pid] = command
        (self._pids / command.name).write_text(str(process.pid))
        # `reap` waits for all children, including orphans: Popen must neither wait for this one nor warn about it.
        process.returncode = 0
        return process.pid

    def require_alive(self) -> None:
        """Check that all programs are running.

        Raises:
            HarnessError: one has exited; the message contains the end of its log.
        """
        for command in self.reap():
            log = (self._logs / f"{command.name}.log").read_text(errors="replace")
            raise HarnessError(f"{command.name} exited during startup of the cluster:\n{log[-LOG_TAIL_CHARS:]}")

    def restart_exited(self) -> None:
        """Restart the programs that have exited since the last call."""
        for command in self.reap():
            self.start(command)

    def reap(self) -> list[Command]:
        """Reap all child processes that have exited, including orphans, and return the programs among them."""
        exited = []
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if command := self._running.pop(pid, None):
                    exited.append(command)
        return exited

    def kill(self) -> None:
        """Send SIGKILL to all programs; a graceful shutdown of the API server takes 10 seconds."""
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._running:
            self.reap()
            time.sleep(0.01)


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it exits."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def without_proxies() -> dict[str, str]:
    """The environment variables without proxy settings, for programs that connect only to this machine."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def free_ports(count: int) -> list[int]:
    """Distinct unused TCP ports of the loopback interface."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(
    what: str,
    condition: Callable[[], bool],
    timeout: float,
    check: Callable[[], None] = lambda: None,
    interval: float = 0.05,
) -> None:
    """Wait until a condition is true.

    Args:
        what: what is waited for, used in the error message.
        condition: polled every `interval` seconds.
        timeout: in seconds.
        check: called between polls; raises if the condition can no longer become true.
        interval: in seconds.

    Raises:
        HarnessError: the timeout expired.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise HarnessError(f"timed out after {timeout:.0f} s waiting for {what}")
        time.sleep(interval)


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
