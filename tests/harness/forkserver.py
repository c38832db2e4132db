"""Starts Python programs as forks of one process that has imported torch and the like already.

Importing them takes 10 s of a core, and dozens of tests start a program that needs them. A program started here is a
process of its own in every other way: it has its own arguments, environment, working directory, standard streams,
session and exit status, it receives signals directly, and its interpreter ends as it always does. What differs:

- The preloaded libraries have read their environment variables in the server. None of them reads a variable of the
  Hugging Face Hub: each program imports those that do by itself.
- torch uses one thread.
- All programs have the same hash seed.
- What is written to standard error after the exit handlers is lost.
- The command line that `ps` shows is the server's; `Process.members` finds the program and its children.

One server serves a whole test run, whose processes find it by an environment variable. It imports nothing before the
first program is started.
Run as `python -m harness.forkserver SOCKET`.
"""

import atexit
import builtins
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any

import psutil

from harness.errors import HarnessError
from harness.launch import PACKAGES, python_environment
from harness.processes import die_with_parent, running, wait_until

PRELOADED = (
    "aiohttp",
    "fsspec",
    "httpx2",
    "jinja2",
    "matplotlib.pyplot",
    "multiprocess",
    "pandas",
    "prometheus_client",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "rapidfuzz",
    "regex",
    "sklearn.datasets",
    "sklearn.metrics",
    "torch",
    "torch.distributed.checkpoint",
    "torchvision",
    "typer",
)
ADDRESS = "FINETUNE_TEST_FORK_SERVER"
READ_HUB_VARIABLES = ("datasets", "huggingface_hub.constants", "transformers")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# pyarrow's allocator starts its thread again in a fork.
SURVIVES_FORK = "jemalloc_bg_thd"
LARGEST_REQUEST = 1 << 20
IMPORTING = 600.0


class ForkServer:
    """A server for `start` and `run`, for as long as the `with` block and no longer than this process."""

    def __enter__(self) -> "ForkServer":
        """Start it; takes a moment, since it has imported nothing yet."""
        self._folder = Path(tempfile.mkdtemp(prefix="finetune-forkserver-"))
        address = self._folder / "socket"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.forkserver", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=python_environment() | ONE_THREAD,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        wait_until("the fork server", address.exists, 30)
        os.environ[ADDRESS] = str(address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; the kernel then ends whatever it started."""
        del os.environ[ADDRESS]
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)


class Process:
    """A program that the server started; used as `subprocess.Popen` is."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.returncode: int | None = None
        self.pid = self._receive(IMPORTING)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
        """
        if self.returncode is None:
            self.returncode = self._receive(timeout)
            self._connection.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def kill_session(self) -> None:
        """Send SIGKILL to the program and its children, those it has left behind as well."""
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def members(self) -> list[int]:
        """The running processes of the program's session: itself and its children."""
        return [pid for pid in psutil.pids() if self._is_member(pid)]

    def _is_member(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self.pid and running(pid)
        except ProcessLookupError:
            return False

    def _receive(self, timeout: float | None) -> int:
        self._connection.settimeout(timeout)
        try:
            message = self._connection.recv(64)
        except BlockingIOError as error:
            raise TimeoutError from error
        except ConnectionResetError:
            message = b""
        if not message:
            raise HarnessError("the fork server ended; its own words are on the standard error of the test run")
        return int(message)


def start(
    argv: Sequence[object],
    *,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a program; by default with this process's streams, working directory and environment.

    Args:
        argv: a script and its arguments, or `-c`, code and its arguments.
        stdout: where its standard output goes.
        stderr: where its standard error goes.
        cwd: its working directory.
        env: its environment.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ[ADDRESS])
    environment = os.environ if env is None else env
    request = {"argv": [str(part) for part in argv], "cwd": str(cwd or Path.cwd()), "env": dict(environment)}
    with Path(os.devnull).open() as nothing:
        streams = [nothing.fileno(), stdout.fileno() if stdout else 1, stderr.fileno() if stderr else 2]
        socket.send_fds(connection, [json.dumps(request).encode()], streams)
    return Process(connection)


def run(
    argv: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, as `subprocess.run(capture_output=True, text=True)` does."""
    with _capture() as out, _capture() as err:
        process = start(argv, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            process.wait(timeout)
        except TimeoutError:
            process.kill_session()
        done = subprocess.CompletedProcess(list(map(str, argv)), process.returncode or 0, _text(out), _text(err))
    if process.returncode is None:
        raise subprocess.TimeoutExpired(done.args, timeout, done.stdout, done.stderr)
    return done


def script(name: str) -> Path:
    """A command of this environment, such as `finetune`."""
    return Path(sys.executable).with_name(name)


def _capture() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


# The server's side


def main(address: str) -> None:
    """Serve for ever. Each program returns from `serve` in a process of its own and runs here, to its very end."""
    argv = serve(address)
    script, code = ("<string>", argv[1]) if argv[0] == "-c" else (argv[0], Path(argv[0]).read_text())
    sys.argv = ["-c", *argv[2:]] if argv[0] == "-c" else argv
    outside = [path for path in sys.path[1:] if path != str(PACKAGES)]
    sys.path[:] = ["" if argv[0] == "-c" else str(Path(script).resolve().parent), *outside]
    program = ModuleType("__main__")
    program.__dict__.update({"__builtins__": builtins, "__file__": script})
    sys.modules["__main__"] = program
    exec(compile(code, script, "exec"), program.__dict__)


def serve(address: str) -> list[str]:
    """Fork a program for each connection; returns its arguments, in the program."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            _preload()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    return _attend(connection)


def _preload() -> None:
    if PRELOADED[0] in sys.modules:
        return
    for name in PRELOADED:
        importlib.import_module(name)
    early = [name for name in READ_HUB_VARIABLES if name in sys.modules]
    assert not early, f"{early} would read the server's environment, not the program's"
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert threads.count(SURVIVES_FORK) == len(threads) - 1, f"a fork would lack threads of the server's: {threads}"
    # Memory that garbage collection does not touch stays shared with the forks, and exits take a second less.
    gc.collect()
    gc.freeze()
    atexit.register(_silence_leak_report)


def _silence_leak_report() -> None:
    """Close standard error as the last exit handler: triton's bindings report frozen objects as leaked after it."""
    sys.stderr.flush()
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)


def _attend(connection: socket.socket) -> list[str]:
    """Fork the program and tell its process number and its exit status; returns the arguments, in the program."""
    message, streams, *_ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
    program = os.fork()
    if program == 0:
        connection.close()
        return _become(json.loads(message), streams)
    # The test may have ended.
    with suppress(BrokenPipeError):
        connection.send(str(program).encode())
        _, status = os.waitpid(program, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> list[str]:
    die_with_parent()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _open_streams()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.modules["numpy"].random.seed()
    argv: list[str] = request["argv"]
    return argv


def _open_streams() -> None:
    """Open standard output and error anew: the server's objects assume that they can seek, as in the null device."""
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)  # type: ignore[misc]


if __name__ == "__main__":
    main(sys.argv[1])
