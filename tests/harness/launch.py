"""Starts and stops the supervisor process of a cluster, for tests and the command line."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness import cache
from harness.cluster_config import ClusterConfig
from harness.errors import HarnessError
from harness.processes import running, wait_until

PACKAGES = Path(__file__).parents[1]
START_TIMEOUT_S = 240
# Unmounting waits until the kernel has written the images of a node to disk.
STOP_TIMEOUT_S = 300
MAX_FAILURE_LOGS = 5


class Supervisor:
    """Handle of a running supervisor, held by the process that started it."""

    def __init__(self, config: ClusterConfig, process: "subprocess.Popen[bytes]") -> None:
        self.config = config
        self._process = process

    def stop(self) -> None:
        """Stop the cluster, wait for its end and delete its directory.

        Raises:
            HarnessError: the supervisor did not exit in time.
        """
        self._process.terminate()
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise HarnessError(
                f"the cluster in {self.config.folder} did not stop", "run `down` on that directory"
            ) from None
        shutil.rmtree(self.config.folder, ignore_errors=True)


def launch(config: ClusterConfig) -> Supervisor:
    """Start a cluster and wait until it is ready.

    Raises:
        HarnessError: it did not start; the message names the directory with its logs.
    """
    (config.folder / "logs").mkdir(parents=True, exist_ok=True)
    config.save()
    with (config.folder / "logs" / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.supervisor", str(config.folder)],
            stdin=subprocess.DEVNULL if config.daemon else subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=python_environment(),
            start_new_session=True,
        )
    (config.folder / "supervisor.pid").write_text(str(process.pid))
    supervisor = Supervisor(config, process)
    try:
        ready = config.folder / "ready"
        wait_until("the cluster", ready.exists, START_TIMEOUT_S, _check_started(config.folder, process))
    except HarnessError as error:
        logs = _save_logs(config.folder)
        supervisor.stop()
        raise HarnessError(f"{error}\n  logs: {logs}") from None
    except BaseException:
        supervisor.stop()
        raise
    return supervisor


def _save_logs(folder: Path) -> Path:
    saved = cache.entry_path("failed", folder.name)
    shutil.copytree(folder / "logs", saved, dirs_exist_ok=True)
    cache.prune("failed", MAX_FAILURE_LOGS)
    return saved


def python_environment() -> dict[str, str]:
    """Environment variables with which a child process can import this package."""
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def stop_daemon(folder: Path) -> None:
    """Stop the cluster in a directory; works from any process."""
    if not (folder / "cluster.json").exists():
        raise HarnessError(f"no cluster in {folder}", "pass the directory that was passed to `up`")
    config = ClusterConfig.load(folder)
    pid = _supervisor_pid(folder)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until("the cluster to stop", lambda: not running(pid), STOP_TIMEOUT_S)
    elif config.node:
        from harness.node_deployer import NodeDeployer

        NodeDeployer(config).clean_up()
    shutil.rmtree(folder, ignore_errors=True)


def _supervisor_pid(folder: Path) -> int | None:
    """The PID of the running supervisor of a directory; None if it has exited, even if the PID was reused."""
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int((folder / "supervisor.pid").read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"harness.supervisor" in argv and os.fsencode(folder) in argv:
            return pid
    return None


def _check_started(folder: Path, process: "subprocess.Popen[bytes]") -> Callable[[], None]:
    def check() -> None:
        if (folder / "error").exists():
            raise HarnessError((folder / "error").read_text())
        if process.poll() is not None:
            log = (folder / "logs" / "supervisor.log").read_text(errors="replace")
            raise HarnessError(f"the supervisor of the cluster exited:\n{log[-2000:]}")

    return check
