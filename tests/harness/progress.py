"""Progress of long-running tasks: a spinner on a terminal, otherwise a line every 15 seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

LINE_INTERVAL_S = 15.0
console = Console(stderr=True, highlight=False)


def print_line(message: str) -> None:
    """Print a line to standard error."""
    console.print(message, markup=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds as minutes and seconds, such as `3:07`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Task:
    """A running task; `update` shows its current state."""

    def __init__(self, title: str, status: Status | None) -> None:
        self._title = title
        self._status = status
        self._started = time.monotonic()
        self._last_printed = self._started

    def update(self, detail: str) -> None:
        """Show the current state: immediately on a terminal, otherwise at most every 15 seconds."""
        now = time.monotonic()
        line = f"{self._title}: {format_duration(now - self._started)}, {detail}"
        if self._status is not None:
            self._status.update(Text(line))
        elif now - self._last_printed >= LINE_INTERVAL_S:
            self._last_printed = now
            print_line(line)

    def finish(self) -> None:
        """Print the duration."""
        print_line(f"{self._title}: done in {format_duration(time.monotonic() - self._started)}")


@contextmanager
def task(title: str) -> Iterator[Task]:
    """Show `title` while the `with` block runs, and its duration if it succeeds."""
    if console.is_terminal:
        with console.status(Text(title)) as status:
            work = Task(title, status)
            yield work
    else:
        print_line(title)
        work = Task(title, None)
        yield work
    work.finish()
