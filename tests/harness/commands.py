"""Runs external programs; the error of a failed program includes the end of its output."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.errors import HarnessError

Argument = str | Path
TAIL_LINES = 25


def run(
    *argv: Argument, input: str | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a program and return its standard output.

    Raises:
        HarnessError: the exit status is not zero.
    """
    command = [str(part) for part in argv]
    result = subprocess.run(
        command, input=input, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise HarnessError(failure_message(command, result.returncode, result.stderr or result.stdout))
    return result.stdout


def run_streaming(
    *argv: Argument, on_line: Callable[[str], None], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> None:
    """Run a program and pass each line of its output to `on_line` as it is written.

    Raises:
        HarnessError: the exit status is not zero.
    """
    command = [str(part) for part in argv]
    recent: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            recent = [*recent[-TAIL_LINES:], line.rstrip()]
            on_line(line.rstrip())
    if process.returncode:
        raise HarnessError(failure_message(command, process.returncode, "\n".join(recent)))


def failure_message(command: list[str], status: int, output: str) -> str:
    """The command, its exit status and the last lines of its output."""
    tail = "\n".join(f"  | {line}" for line in output.strip().splitlines()[-TAIL_LINES:])
    return f"`{' '.join(command[:4])}{' ...' if len(command) > 4 else ''}` failed with exit status {status}\n{tail}"
