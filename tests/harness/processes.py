"""The long-running programs of one cluster: started, restarted when they die, and never left behind.

The kernel kills each of them when the process that started it dies, however it dies.
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
LOG_TAIL = 2000
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Command:
    """A program to keep running; its log is named for it."""

    name: str
    argv: tuple[str, ...]


class Processes:
    """The running programs of one cluster, with a log and a pid file for each."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "logs"
        self._pids = folder / "pids"
        self._logs.mkdir(exist_ok=True)
        self._pids.mkdir(exist_ok=True)
        self._running: dict[int, Command] = {}

    def start(self, command: Command) -> int:
        """Start a program in the background."""
        with (self._logs / f"{command.name}.log").open("ab") as log:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=without_proxies(),
                start_new_session=True,
                # The only other thread of ours sleeps in a system call, and holds no lock that a child could need.
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        self._running[process.pid] = command
        (self._pids / command.name).write_text(str(process.pid))
        # We reap all children by ourselves, orphans too: Popen must not wait for this one, or complain of it.
        process.returncode = 0
        return process.pid

    def require_alive(self) -> None:
        """Fail with the end of its log if a program has died."""
        for command in self.reap():
            log = (self._logs / f"{command.name}.log").read_text(errors="replace")
            raise HarnessError(f"{command.name} died while the cluster was starting:\n{log[-LOG_TAIL:]}")

    def restart_dead(self) -> None:
        """Start again what has died since the last call."""
        for command in self.reap():
            self.start(command)

    def reap(self) -> list[Command]:
        """The programs that have died since the last call; orphans that fell to us are reaped as well."""
        dead = []
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if command := self._running.pop(pid, None):
                    dead.append(command)
        return dead

    def kill(self) -> None:
        """Kill all, at once: the cluster is thrown away, and an API server that ends politely takes ten seconds."""
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._running:
            self.reap()
            time.sleep(0.01)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def without_proxies() -> dict[str, str]:
    """The environment for programs that only ever talk to this machine."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(
    what: str,
    condition: Callable[[], bool],
    timeout: float,
    meanwhile: Callable[[], None] = lambda: None,
    interval: float = 0.05,
) -> None:
    """Wait for a condition; `meanwhile` may raise to say that it can never come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        meanwhile()
        if time.monotonic() > deadline:
            raise HarnessError(f"gave up waiting for {what} after {timeout:.0f} s")
        time.sleep(interval)


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
