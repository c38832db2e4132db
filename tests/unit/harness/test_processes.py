"""Child processes of a cluster: ports, timeouts, restarts, and termination with the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.launch import python_environment
from harness.processes import free_ports, running, wait_until

SUPERVISE = """
import sys, time
from pathlib import Path
from harness.processes import Command, Processes
processes = Processes(Path(sys.argv[1]))
processes.start(Command("sleeper", ("sleep", "600")))
while True:
    processes.restart_exited()
    time.sleep(0.02)
"""


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20


def test_wait_until_raises_on_timeout() -> None:
    with pytest.raises(HarnessError, match="timed out after 0 s waiting for the pod"):
        wait_until("the pod", lambda: False, 0.01)


def test_restarts_exited_programs_and_kills_them_with_the_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)], env=python_environment())
    try:
        first = _pid(tmp_path, other_than=0)
        os.kill(first, signal.SIGKILL)
        second = _pid(tmp_path, other_than=first)
        assert running(second)
    finally:
        parent.kill()
        parent.wait()
    wait_until("the program to exit", lambda: not running(second), 10)


def _pid(folder: Path, other_than: int) -> int:
    file = folder / "pids" / "sleeper"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()) and int(text) != other_than:
            return int(text)
        time.sleep(0.02)
    raise AssertionError("the program was not started")
