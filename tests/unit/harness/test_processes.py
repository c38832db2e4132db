"""Programs of a cluster are restarted when they die, and end with whoever started them."""

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
    processes.restart_dead()
    time.sleep(0.02)
"""


def test_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(HarnessError, match="gave up waiting for the moon"):
        wait_until("the moon", lambda: False, 0.01)


def test_what_dies_is_restarted_and_nothing_outlives_a_killed_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)], env=python_environment())
    try:
        first = _pid(tmp_path, besides=0)
        os.kill(first, signal.SIGKILL)
        second = _pid(tmp_path, besides=first)
        assert running(second)
    finally:
        owner.kill()
        owner.wait()
    wait_until("the program's end", lambda: not running(second), 10)


def _pid(folder: Path, besides: int) -> int:
    file = folder / "pids" / "sleeper"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()) and int(text) != besides:
            return int(text)
        time.sleep(0.02)
    raise AssertionError("the program was not started")
