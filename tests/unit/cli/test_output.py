"""Output never makes a run wait or fail: a closed or full pipe, a terminal that is gone, a full disk."""

import fcntl
import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.cli.output import MAX_QUEUED_BYTES, QueuedOutput, queued_output
from harness import forkserver
from harness.forkserver import Process
from harness.processes import wait_until


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A pipe that holds a page."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(read_end, "rb", buffering=0) as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        yield reader, writer


def start(work: Any, stdout: IO[Any], *options: str, stderr: IO[Any] | None = None) -> Process:
    arguments = ["run", work.job, *work.claim_paths(), *options]
    return forkserver.start([forkserver.script("finetune"), *arguments], stdout=stdout, stderr=stderr or stdout)


def succeeded(work: Any, process: Process) -> bool:
    return process.wait(120) == ExitCode.DONE and (work.folder / "claims/out/tiny/model.safetensors").exists()


def test_closed_pipe(work: Any, pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    reader, writer = pipe
    process = start(work, writer)
    reader.close()
    assert succeeded(work, process)


def test_full_pipe_that_is_not_read(work: Any, pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    os.set_blocking(pipe[1].fileno(), False)
    assert pipe[1].write(b"x" * 10_000) == 4096
    os.set_blocking(pipe[1].fileno(), True)
    assert succeeded(work, start(work, pipe[1]))


def test_full_disk(work: Any) -> None:
    with Path("/dev/full").open("w") as full:
        assert succeeded(work, start(work, full))


@pytest.mark.parametrize("option", ["--plain", "--no-plain"])
def test_terminal_that_is_gone(work: Any, option: str) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        process = start(work, terminal, option)
        assert os.read(master, 1)
        os.close(master)
        assert succeeded(work, process)


def test_hangup_writes_a_checkpoint(work: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = start(work, stream, "--set", "training.epochs=100000")
    wait_until("a step", lambda: "  step " in log.read_text(), 120)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert "stopped: interrupted after step " in log.read_text()
    assert list(work.folder.glob("claims/out/tiny/.checkpoints/*/step-*"))


def test_slow_reader_loses_lines_and_is_told_how_many(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    reader, writer = pipe
    output, line = QueuedOutput(writer.fileno()), b"x" * 999 + b"\n"
    begin, count = time.monotonic(), 3 * MAX_QUEUED_BYTES // len(line)
    for _ in range(count):
        output.write(line)
    assert time.monotonic() - begin < 5
    assert not output.drain(0)
    received = bytearray()
    while not received.endswith(b"in time]\n"):
        received += reader.read(1 << 16)
    *lines, note = received.decode().splitlines()
    assert note == f"[{count - len(lines)} lines of output were dropped: they were not read in time]"
    assert MAX_QUEUED_BYTES // len(line) <= len(lines) < count
    assert output.drain(5)


def test_forked_child_drops_what_would_block(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    reader, writer = pipe
    output = QueuedOutput(writer.fileno())
    if (child := os.fork()) == 0:
        for _ in range(100):
            output.write(b"x" * 1000)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert 0 < len(reader.read(1 << 20)) <= 4096


def test_streams_that_were_replaced_stay(capsys: pytest.CaptureFixture[str]) -> None:
    stream = sys.stdout
    with queued_output():
        assert sys.stdout is stream
        print("captured")
    assert capsys.readouterr().out == "captured\n"
