"""Starts a control plane for tests that need the API and its controllers, but no running pods. Needs no root."""

import os
import signal
import tempfile
from pathlib import Path
from types import TracebackType

from harness import binaries
from harness.cluster import Cluster
from harness.cluster_config import ClusterConfig, Ports
from harness.launch import Supervisor, launch


class ControlPlane(Cluster):
    """A context manager that runs etcd, API server and controller-manager on free ports of 127.0.0.1.

    Args:
        scheduler: also run kube-scheduler; the test creates the Node objects.
    """

    def __init__(self, *, scheduler: bool = False) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> "ControlPlane":
        """Start the control plane, which takes 5 to 7 seconds."""
        self._supervisor = up(scheduler=self._scheduler)
        super().__init__(self._supervisor.config.admin_kubeconfig, self._supervisor.config.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the control plane and delete its files."""
        self._supervisor.stop()

    def signal(self, component: str, number: signal.Signals) -> None:
        """Send a signal to a component, such as SIGSTOP to `kube-apiserver`; a component that exits is restarted."""
        os.kill(int((self.folder / "pids" / component).read_text()), number)


def up(folder: Path | None = None, *, scheduler: bool = False, daemon: bool = False) -> Supervisor:
    """Start a control plane.

    Args:
        folder: directory of the cluster; by default a new temporary directory.
        scheduler: also run kube-scheduler.
        daemon: keep running after the calling process exits.
    """
    config = ClusterConfig(
        folder=folder or Path(tempfile.mkdtemp(prefix="finetune-control-plane-")),
        binaries=binaries.control_plane_directory(scheduler=scheduler),
        ports=Ports.free(),
        scheduler=scheduler,
        daemon=daemon,
    )
    return launch(config)
