"""Starting and stopping a cluster's supervisor, from a test or from the command line."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness import cache
from harness.errors import HarnessError
from harness.processes import running, wait_until
from harness.site import Site

PACKAGES = Path(__file__).parents[1]
STARTING = 240
# The kernel writes a node's images to the disk before it lets go of them.
STOPPING = 300
FAILURES_KEPT = 5


class Supervised:
    """A running supervisor, seen from the process that started it."""

    def __init__(self, site: Site, process: "subprocess.Popen[bytes]") -> None:
        self.site = site
        self._process = process

    def stop(self) -> None:
        """Take the cluster down; returns when nothing of it is left."""
        self._process.terminate()
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise HarnessError(f"the cluster in {self.site.folder} did not end", "run `down` on that folder") from None
        shutil.rmtree(self.site.folder, ignore_errors=True)


def launch(site: Site) -> Supervised:
    """Start a cluster and return when it is ready."""
    (site.folder / "logs").mkdir(parents=True, exist_ok=True)
    site.save()
    with (site.folder / "logs" / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.supervisor", str(site.folder)],
            stdin=subprocess.DEVNULL if site.daemon else subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=python_environment(),
            start_new_session=True,
        )
    (site.folder / "supervisor.pid").write_text(str(process.pid))
    supervised = Supervised(site, process)
    try:
        ready = site.folder / "ready"
        wait_until("the cluster", ready.exists, STARTING, _failed(site.folder, process))
    except HarnessError as error:
        logs = _keep_logs(site.folder)
        supervised.stop()
        raise HarnessError(f"{error}\n  logs: {logs}") from None
    except BaseException:
        supervised.stop()
        raise
    return supervised


def _keep_logs(folder: Path) -> Path:
    kept = cache.entry("failed", folder.name)
    shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)
    cache.keep_newest("failed", FAILURES_KEPT)
    return kept


def python_environment() -> dict[str, str]:
    """The environment in which a child process can import this package."""
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def stop_daemon(folder: Path) -> None:
    """Take down the cluster that lives in this folder, whoever started it."""
    if not (folder / "site.json").exists():
        raise HarnessError(f"there is no cluster in {folder}", "give the folder that `up` was given")
    site = Site.load(folder)
    pid = _supervisor(folder)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until("the cluster's end", lambda: not running(pid), STOPPING)
    elif site.node:
        from harness.nodetier import NodeTier

        NodeTier(site).sweep()
    shutil.rmtree(folder, ignore_errors=True)


def _supervisor(folder: Path) -> int | None:
    """The pid of the folder's supervisor, unless that number now belongs to somebody else."""
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int((folder / "supervisor.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"harness.supervisor" in words and os.fsencode(folder) in words:
            return pid
    return None


def _failed(folder: Path, process: "subprocess.Popen[bytes]") -> Callable[[], None]:
    def check() -> None:
        if (folder / "error").exists():
            raise HarnessError((folder / "error").read_text())
        if process.poll() is not None:
            log = (folder / "logs" / "supervisor.log").read_text(errors="replace")
            raise HarnessError(f"the cluster's supervisor ended:\n{log[-2000:]}")

    return check
