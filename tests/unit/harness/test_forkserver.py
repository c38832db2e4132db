"""The fork server: a program that it starts behaves like one that the interpreter starts."""

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
def test_same_arguments_environment_cwd_streams_and_exit_status_as_the_interpreter(
    tmp_path: Path, is_script: bool
) -> None:
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    argv = [str(script), "a", "b"] if is_script else ["-c", SHOW, "a", "b"]
    expected = subprocess.run(
        [sys.executable, *argv], cwd=tmp_path, env={"X": "1"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        start_new_session=True, check=False,
    )  # fmt: skip
    actual = forkserver.run(argv, cwd=tmp_path, env={"X": "1"})
    assert (actual.returncode, actual.stderr) == (expected.returncode, expected.stderr) == (7, " to stderr\n")
    expected_output = json.loads(expected.stdout)
    expected_output[3].pop("LC_CTYPE", None)  # Python sets it in the C locale
    assert json.loads(actual.stdout) == expected_output


def test_preloads_torch_but_not_the_libraries_that_read_hub_variables() -> None:
    code = "import sys; print('torch' in sys.modules, 'transformers' in sys.modules, 'huggingface_hub' in sys.modules)"
    assert forkserver.run(["-c", code]).stdout == "True False False\n"


def test_uncaught_exception_prints_traceback_and_exits_with_1() -> None:
    result = forkserver.run(["-c", "1 / 0"])
    assert result.returncode == 1
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_terminate_sends_sigterm(sleeping: Process) -> None:
    assert sleeping.poll() is None
    sleeping.terminate()
    assert sleeping.wait(10) == -signal.SIGTERM
    sleeping.kill_session()


def test_members_include_children_after_the_program_exits(sleeping: Process) -> None:
    assert len(sleeping.members()) == 2
    sleeping.kill()
    sleeping.wait(10)
    assert len(sleeping.members()) == 1
    sleeping.kill_session()
    wait_until("the child to exit", lambda: not sleeping.members(), 10)


def test_run_kills_the_program_after_the_timeout() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        forkserver.run(["-c", SLEEP], timeout=1)
    assert raised.value.output


def test_programs_have_different_random_seeds() -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    first, second = forkserver.run(["-c", code]).stdout.split(), forkserver.run(["-c", code]).stdout.split()
    assert not set(first) & set(second)
