"""A program that the fork server starts is like one that the interpreter starts."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import forkserver
from harness.forkserver import Process
from harness.processes import wait_until

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), dict(os.environ), __name__, os.getpid() == os.getsid(0)]))
print(sys.stdin.read(), "to stderr", file=sys.stderr)
sys.exit(7)
"""
SLEEP = "import os, time; print(os.fork(), flush=True); time.sleep(600)"


@pytest.fixture
def sleeping(tmp_path: Path) -> Process:
    """A program that has a child and sleeps."""
    with (tmp_path / "out").open("w") as out:
        process = forkserver.start(["-c", SLEEP], stdout=out)
    wait_until("its child", lambda: len((tmp_path / "out").read_text().split()) == 2, 60)
    return process


@pytest.mark.parametrize("is_script", [True, False])
def test_arguments_environment_folder_streams_and_exit_status(tmp_path: Path, is_script: bool) -> None:
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    argv = [str(script), "a", "b"] if is_script else ["-c", SHOW, "a", "b"]
    real = subprocess.run(
        [sys.executable, *argv], cwd=tmp_path, env={"X": "1"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        start_new_session=True, check=False,
    )  # fmt: skip
    ours = forkserver.run(argv, cwd=tmp_path, env={"X": "1"})
    assert (ours.returncode, ours.stderr) == (real.returncode, real.stderr) == (7, " to stderr\n")
    theirs = json.loads(real.stdout)
    theirs[3].pop("LC_CTYPE", None)  # Python itself sets it where there is no locale
    assert json.loads(ours.stdout) == theirs


def test_nothing_of_the_hub_is_imported_yet_and_torch_is() -> None:
    code = "import sys; print('torch' in sys.modules, 'transformers' in sys.modules, 'huggingface_hub' in sys.modules)"
    assert forkserver.run(["-c", code]).stdout == "True False False\n"


def test_an_uncaught_exception_is_shown_and_ends_with_1() -> None:
    ended = forkserver.run(["-c", "1 / 0"])
    assert ended.returncode == 1
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_signals_reach_it(sleeping: Process) -> None:
    assert sleeping.poll() is None
    sleeping.terminate()
    assert sleeping.wait(10) == -signal.SIGTERM
    sleeping.kill_session()


def test_its_children_are_found_when_it_is_gone(sleeping: Process) -> None:
    assert len(sleeping.members()) == 2
    sleeping.kill()
    sleeping.wait(10)
    assert len(sleeping.members()) == 1
    sleeping.kill_session()
    wait_until("the end of the child", lambda: not sleeping.members(), 10)


def test_what_takes_too_long_is_killed_and_its_output_shown() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        forkserver.run(["-c", SLEEP], timeout=1)
    assert raised.value.output


def test_random_numbers_differ() -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    first, second = forkserver.run(["-c", code]).stdout.split(), forkserver.run(["-c", code]).stdout.split()
    assert not set(first) & set(second)
