"""A fork server: starts Python programs as forks of a process that has already imported torch.

Importing torch and the other libraries in PRELOADED takes 10 s of CPU time, and dozens of tests start a program that
needs them. A forked program has its own arguments, environment, working directory, standard streams, session and exit
status, receives signals directly, and exits like any other interpreter. The differences are:

- Preloaded libraries have read their environment variables in the server. None of them reads a variable of the
  Hugging Face Hub; the libraries that do are imported by each program.
- torch uses one thread.
- All programs have the same hash seed.
- Output to standard error after the exit handlers is lost.
- `ps` shows the command line of the server; `Process.members` finds the program and its children.

One server runs for a whole test session; the pytest-xdist workers find its socket in an environment variable. It
imports the libraries when the first program is started.
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
# These read the environment variables of the Hugging Face Hub when they are imported.
NOT_PRELOADED = ("datasets", "huggingface_hub.constants", "transformers")
SOCKET_VARIABLE = "FINETUNE_TEST_FORK_SERVER"
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# A background thread of pyarrow's allocator. A fork has no threads of its parent, but jemalloc starts this one again.
JEMALLOC_THREAD = "jemalloc_bg_thd"
MAX_REQUEST_BYTES = 1 << 20
PRELOAD_TIMEOUT_S = 600.0


class ForkServer:
    """A context manager that runs the server for `start` and `run`; the server is killed if this process exits."""

    def __enter__(self) -> "ForkServer":
        """Start the server. This is fast, because it has imported nothing yet."""
        self._folder = Path(tempfile.mkdtemp(prefix="finetune-forkserver-"))
        address = self._folder / "socket"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.forkserver", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=python_environment() | SINGLE_THREADED,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        wait_until("the fork server", address.exists, 30)
        os.environ[SOCKET_VARIABLE] = str(address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the server; the kernel then kills all programs that it started."""
        del os.environ[SOCKET_VARIABLE]
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)


class Process:
    """A program started by the server, with the interface of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.returncode: int | None = None
        self.pid = self._receive(PRELOAD_TIMEOUT_S)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the program runs."""
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program exits, and return the exit status.

        Raises:
            TimeoutError: the program still runs after `timeout` seconds.
        """
        if self.returncode is None:
            self.returncode = self._receive(timeout)
            self._connection.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program unless it has exited."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def kill_session(self) -> None:
        """Send SIGKILL to the program and its children, even if the program has exited."""
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def members(self) -> list[int]:
        """The PIDs of the running processes in the session of the program: the program and its children."""
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
            raise HarnessError("the fork server exited; its output is on the standard error of the test run")
        return int(message)


def start(
    argv: Sequence[object],
    *,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a program; by default it inherits the streams, working directory and environment of this process.

    Args:
        argv: a script and its arguments, or `-c`, code and its arguments.
        stdout: file for standard output.
        stderr: file for standard error.
        cwd: working directory.
        env: environment variables.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ[SOCKET_VARIABLE])
    environment = os.environ if env is None else env
    request = {"argv": [str(part) for part in argv], "cwd": str(cwd or Path.cwd()), "env": dict(environment)}
    with Path(os.devnull).open() as devnull:
        streams = [devnull.fileno(), stdout.fileno() if stdout else 1, stderr.fileno() if stderr else 2]
        socket.send_fds(connection, [json.dumps(request).encode()], streams)
    return Process(connection)


def run(
    argv: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Run a program like `subprocess.run(capture_output=True, text=True)`.

    Raises:
        subprocess.TimeoutExpired: the program was killed after `timeout` seconds.
    """
    with _temporary_file() as out, _temporary_file() as err:
        process = start(argv, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            process.wait(timeout)
        except TimeoutError:
            process.kill_session()
        result = subprocess.CompletedProcess(list(map(str, argv)), process.returncode or 0, _text(out), _text(err))
    if process.returncode is None:
        raise subprocess.TimeoutExpired(result.args, timeout, result.stdout, result.stderr)
    return result


def script(name: str) -> Path:
    """The path of a console script of this environment, such as `finetune`."""
    return Path(sys.executable).with_name(name)


def _temporary_file() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


# Server


def main(address: str) -> None:
    """Run the server until it is killed. In the process of a program, `serve` returns, and the program is run here."""
    argv = serve(address)
    filename, code = ("<string>", argv[1]) if argv[0] == "-c" else (argv[0], Path(argv[0]).read_text())
    sys.argv = ["-c", *argv[2:]] if argv[0] == "-c" else argv
    search_path = [path for path in sys.path[1:] if path != str(PACKAGES)]
    sys.path[:] = ["" if argv[0] == "-c" else str(Path(filename).resolve().parent), *search_path]
    module = ModuleType("__main__")
    module.__dict__.update({"__builtins__": builtins, "__file__": filename})
    sys.modules["__main__"] = module
    exec(compile(code, filename, "exec"), module.__dict__)


def serve(address: str) -> list[str]:
    """Fork a process for each connection. Returns only in the process of a program, with its arguments."""
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
    return _handle_connection(connection)


def _preload() -> None:
    if PRELOADED[0] in sys.modules:
        return
    for name in PRELOADED:
        importlib.import_module(name)
    imported = [name for name in NOT_PRELOADED if name in sys.modules]
    assert not imported, f"a preloaded library imports {imported}, which would ignore the environment of the program"
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert threads.count(JEMALLOC_THREAD) == len(threads) - 1, f"the server has threads that a fork lacks: {threads}"
    # Memory that the garbage collector does not write to stays shared with the forks; exits take a second less.
    gc.collect()
    gc.freeze()
    atexit.register(_silence_leak_report)


def _silence_leak_report() -> None:
    """Close standard error as the last exit handler: triton's bindings report frozen objects as leaked after it."""
    sys.stderr.flush()
    with Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 2)


def _handle_connection(connection: socket.socket) -> list[str]:
    """Fork the program, and send its PID and its exit status. Returns only in the program, with its arguments."""
    message, streams, *_ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _set_up_program(json.loads(message), streams)
    # The test may have closed the connection.
    with suppress(BrokenPipeError):
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _set_up_program(request: dict[str, Any], streams: list[int]) -> list[str]:
    """Set session, streams, working directory and environment of the program, and return its arguments."""
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
