"""Running another program to its end, with its own words in the error when it fails."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.errors import HarnessError

Argument = str | Path
TAIL = 25


def run(
    *argv: Argument, input: str | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a program and return what it wrote to its standard output."""
    command = [str(part) for part in argv]
    done = subprocess.run(
        command, input=input, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HarnessError(failure(command, done.returncode, done.stderr or done.stdout))
    return done.stdout


def follow(
    *argv: Argument, heard: Callable[[str], None], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> None:
    """Run a program for minutes and hand each line it writes to `heard`."""
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
            recent = [*recent[-TAIL:], line.rstrip()]
            heard(line.rstrip())
    if process.returncode:
        raise HarnessError(failure(command, process.returncode, "\n".join(recent)))


def failure(command: list[str], status: int, words: str) -> str:
    """One message of the command, its exit status and the last lines of what it said."""
    tail = "\n".join(f"  | {line}" for line in words.strip().splitlines()[-TAIL:])
    return f"`{' '.join(command[:4])}{' ...' if len(command) > 4 else ''}` failed with exit status {status}\n{tail}"
