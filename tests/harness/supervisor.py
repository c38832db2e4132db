"""The supervisor process of one cluster: starts it, restarts failed components, and removes it.

It is a separate process so that the cluster is removed even if the test run is killed: its standard input is a pipe
that closes when the test process exits. A daemon (`node up`) has no such pipe.
Run as `python -m harness.supervisor FOLDER`; it creates the file `ready` or `error` in FOLDER.
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

from harness import control_plane_components
from harness.cluster_config import ClusterConfig
from harness.errors import HarnessError
from harness.processes import Processes

INTERVAL_S = 0.2


class Deployer(Protocol):
    """Starts, supervises and removes one kind of cluster."""

    def up(self) -> None:
        """Start the cluster and wait until it is ready."""

    def supervise(self) -> None:
        """Restart failed components; called every INTERVAL_S seconds."""

    def down(self) -> None:
        """Remove everything outside the directory of the cluster."""


class ControlPlaneDeployer:
    """Runs the control plane as processes on the loopback interface."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._processes = Processes(config.folder)

    def up(self) -> None:
        """Start the control plane."""
        control_plane_components.start(self._config, self._processes)

    def supervise(self) -> None:
        """Restart the components that have exited."""
        self._processes.restart_exited()

    def down(self) -> None:
        """Kill all processes."""
        self._processes.kill()


def main(folder: Path) -> None:
    """Run one cluster until SIGTERM or until the process that owns it exits."""
    config = ClusterConfig.load(folder)
    deployer = _deployer(config)
    failed = False
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        if not config.daemon:
            threading.Thread(target=_wait_for_owner_exit, daemon=True).start()
        control_plane_components.write_credentials(config)
        deployer.up()
        (folder / "ready").touch()
        while True:
            deployer.supervise()
            time.sleep(INTERVAL_S)
    except Exception as error:
        failed = True
        _write_error(folder, error)
    finally:
        # A second SIGTERM must not interrupt the removal.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        deployer.down()
        if not failed:
            shutil.rmtree(folder)


def _deployer(config: ClusterConfig) -> Deployer:
    if config.node is None:
        return ControlPlaneDeployer(config)
    from harness.node_deployer import NodeDeployer

    return NodeDeployer(config)


def _wait_for_owner_exit() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _write_error(folder: Path, error: Exception) -> None:
    text = str(error) if isinstance(error, HarnessError) else traceback.format_exc()
    temporary = folder / "error.temporary"
    temporary.write_text(text)
    temporary.rename(folder / "error")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
