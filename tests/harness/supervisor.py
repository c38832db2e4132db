"""The process that owns one cluster: starts it, watches it, and takes everything of it down again.

It is a process of its own so that nothing is left behind when a test run is killed: its standard input is a pipe
that nobody writes to, and which ends when the test process does. A daemon (`node up`) has no such pipe.
Run as `python -m harness.supervisor FOLDER`; the folder then holds `ready` or `error`.
"""

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Protocol

from harness import components
from harness.errors import HarnessError
from harness.processes import Processes
from harness.site import Site

INTERVAL = 0.2


class Tier(Protocol):
    """How one kind of cluster is started, kept and removed."""

    def up(self) -> None:
        """Start it and return when it is ready."""

    def keep(self) -> None:
        """Repair what died; called a few times a second."""

    def down(self) -> None:
        """Remove everything that is not in the folder."""


class ControlPlaneTier:
    """Plain processes on the loopback interface."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._processes = Processes(site.folder)

    def up(self) -> None:
        """Start the control plane."""
        components.start(self._site, self._processes)

    def keep(self) -> None:
        """Start again what died, as a real cluster does."""
        self._processes.restart_dead()

    def down(self) -> None:
        """Kill its processes."""
        self._processes.kill()


def main(folder: Path) -> None:
    """Serve one cluster until its owner is gone or asks for its end."""
    site = Site.load(folder)
    tier = _tier(site)
    failed = False
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        if not site.daemon:
            threading.Thread(target=_follow_owner, daemon=True).start()
        components.prepare(site)
        tier.up()
        (folder / "ready").touch()
        while True:
            tier.keep()
            time.sleep(INTERVAL)
    except Exception as error:
        failed = True
        _report(folder, error)
    finally:
        # A second request to end must not interrupt the first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tier.down()
        if not failed:
            shutil.rmtree(folder)


def _tier(site: Site) -> Tier:
    if site.node is None:
        return ControlPlaneTier(site)
    from harness.nodetier import NodeTier

    return NodeTier(site)


def _follow_owner() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _report(folder: Path, error: Exception) -> None:
    words = str(error) if isinstance(error, HarnessError) else traceback.format_exc()
    draft = folder / "error.draft"
    draft.write_text(words)
    draft.rename(folder / "error")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
