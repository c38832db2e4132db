"""How long work shows that it is alive: a spinner on a terminal, else one plain line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

PLAIN_INTERVAL = 15.0
console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one line to the person who is waiting."""
    console.print(message, markup=False, soft_wrap=True)


def elapsed(seconds: float) -> str:
    """A duration as minutes and seconds, such as `3:07`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Task:
    """A piece of work in progress, with a detail that changes while it runs."""

    def __init__(self, title: str, status: Status | None) -> None:
        self._title = title
        self._status = status
        self._begun = time.monotonic()
        self._spoken = self._begun

    def update(self, detail: str) -> None:
        """Show the newest detail: at once on a terminal, at most every 15 s elsewhere."""
        now = time.monotonic()
        line = f"{self._title}: {elapsed(now - self._begun)}, {detail}"
        if self._status is not None:
            self._status.update(line)
        elif now - self._spoken >= PLAIN_INTERVAL:
            self._spoken = now
            say(line)

    def finish(self) -> None:
        """Say how long it took."""
        say(f"{self._title}: done in {elapsed(time.monotonic() - self._begun)}")


@contextmanager
def task(title: str) -> Iterator[Task]:
    """Show `title` while the body runs, and how long it took when it succeeded."""
    if console.is_terminal:
        with console.status(title) as status:
            work = Task(title, status)
            yield work
    else:
        say(title)
        work = Task(title, None)
        yield work
    work.finish()
